//! Finding the ONNX Runtime shared library and loading it, once per process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::ep::{CUDA, ExecutionProvider as _, OpenVINO, TensorRT};

use super::{ExecutionProvider, RuntimeError};

/// The folder that `scripts/setup` fetches the library into, below the project.
const SETUP_FOLDER: &str = ".setup/onnxruntime";

/// The loaded library. There is one per process, as ONNX Runtime demands.
#[derive(Debug)]
pub struct Runtime {
    pub(super) environment: ort::environment::Environment,
    /// The file that was loaded.
    pub library: PathBuf,
    /// What the library was built with, fastest first; whether a provider really works, only a session can tell.
    pub providers: Vec<ExecutionProvider>,
}

impl Runtime {
    /// Loads the library from `named` (a file or a folder), `ORT_DYLIB_PATH`, beside the executable, or the set-up folder.
    /// Later calls return what the first one loaded.
    ///
    /// # Errors
    /// [`RuntimeError::Library`], with what to run.
    pub fn load(named: Option<&Path>) -> Result<Arc<Self>, RuntimeError> {
        static LOADED: Mutex<Option<Arc<Runtime>>> = Mutex::new(None);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*loaded {
            return Ok(Arc::clone(runtime));
        }
        let runtime = Arc::new(Self::open(&find(named)?)?);
        *loaded = Some(Arc::clone(&runtime));
        Ok(runtime)
    }

    fn open(library: &Path) -> Result<Self, RuntimeError> {
        let unusable = |cause: String| {
            RuntimeError::Library(format!(
                "the ONNX Runtime library {} cannot be used: {cause}. Run scripts/setup to fetch one that can",
                library.display()
            ))
        };
        let builder = ort::init_from(library).map_err(|error| unusable(error.to_string()))?;
        let environment =
            builder.with_name("ocelli").with_telemetry(false).build().map_err(|error| unusable(error.to_string()))?;
        let providers = ExecutionProvider::ALL.into_iter().filter(|&provider| built_with(provider)).collect();
        Ok(Self { environment, library: library.to_path_buf(), providers })
    }
}

fn built_with(provider: ExecutionProvider) -> bool {
    match provider {
        ExecutionProvider::Cpu => true,
        ExecutionProvider::OpenVino => OpenVINO::is_available().unwrap_or(false),
        ExecutionProvider::Cuda => CUDA::is_available().unwrap_or(false),
        ExecutionProvider::TensorRt => TensorRT::is_available().unwrap_or(false),
    }
}

/// The library's file, as an absolute path.
fn find(named: Option<&Path>) -> Result<PathBuf, RuntimeError> {
    let from_variable = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty());
    let named = named
        .map(|path| (path.to_path_buf(), "the setting onnxruntime"))
        .or_else(|| from_variable.map(|path| (PathBuf::from(path), "ORT_DYLIB_PATH")));
    if let Some((path, origin)) = named {
        return in_file_or_folder(&path).ok_or_else(|| {
            let path = path.display();
            RuntimeError::Library(format!("{origin} names {path}, where there is no {}", library_name()))
        });
    }
    let folders = search_folders();
    folders.iter().find_map(|folder| in_file_or_folder(folder)).ok_or_else(|| {
        let looked_in: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        RuntimeError::Library(format!(
            "the ONNX Runtime library {} was not found. Run scripts/setup to fetch it, or name it with --onnxruntime or \
             ORT_DYLIB_PATH. Looked in: {}",
            library_name(),
            looked_in.join(", ")
        ))
    })
}

/// Beside the executable, then the set-up folder of the working folder and of each folder above the executable.
fn search_folders() -> Vec<PathBuf> {
    let executable = std::env::current_exe().and_then(|path| path.canonicalize()).unwrap_or_default();
    let beside = executable.parent().into_iter().flat_map(|folder| [folder.to_path_buf(), folder.join("lib")]);
    let working = std::env::current_dir().into_iter();
    let above = executable.ancestors().skip(1).map(Path::to_path_buf);
    let mut folders: Vec<PathBuf> =
        beside.chain(working.chain(above).map(|folder| folder.join(SETUP_FOLDER))).collect();
    folders.dedup();
    folders
}

fn library_name() -> String {
    format!("{}onnxruntime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX)
}

fn in_file_or_folder(path: &Path) -> Option<PathBuf> {
    let file = if path.is_dir() { path.join(library_name()) } else { path.to_path_buf() };
    file.is_file().then(|| file.canonicalize().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_that_is_missing_is_an_error_that_names_it() {
        let error = find(Some(Path::new("/nowhere/at/all"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all") && error.contains("onnxruntime"), "{error}");
    }

    #[test]
    fn a_folder_stands_for_the_library_in_it() {
        let folder = tempfile::tempdir().unwrap();
        assert!(find(Some(folder.path())).is_err());
        let file = folder.path().join(library_name());
        std::fs::write(&file, "").unwrap();
        assert_eq!(find(Some(folder.path())).unwrap(), file.canonicalize().unwrap());
    }
}
