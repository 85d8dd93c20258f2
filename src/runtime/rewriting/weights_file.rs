//! Files of weights in the cache folder: parts of a graph's file, some of them transposed. They are written once, found by later sessions,
//! processes and starts, and go when nobody uses them any more.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};

use crate::runtime::onnx::parts::Place;

/// To be raised when something else is written to files than before.
const REVISION: u32 = 1;

/// Files of graphs that are no more, or have changed, go after so long.
pub(super) const UNUSED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Another process that writes a file is waited for, so long, and looked after so often.
const LONGEST_WRITING: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Weights begin at multiples of it, as kernels like them.
const ALIGNMENT: u64 = 64;

/// Sides of the squares in which matrices are transposed: rows of both then stay in the cache.
const SQUARE: usize = 32;

/// A file of weights.
pub(super) struct Weights {
    name: String,
    parts: Vec<Part>,
    length: u64,
}

/// A tensor of it.
#[derive(Debug)]
struct Part {
    /// In the graph's file, in bytes.
    from: Range<u64>,
    /// In this one.
    at: u64,
    /// If it is to be transposed.
    matrix: Option<Matrix>,
}

/// Columns of a matrix of floats.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    /// Rows and columns of the whole one.
    pub(super) shape: [u64; 2],
    pub(super) columns: Range<u64>,
}

impl Weights {
    /// Of the graph in the file `source`, none yet. `wanted` tells what will be added.
    pub(super) fn new(source: &Path, wanted: &impl std::fmt::Debug) -> io::Result<Self> {
        Ok(Self { name: Self::name(source, wanted)?, parts: Vec::new(), length: 0 })
    }

    /// Adds a part, and returns where it is.
    pub(super) fn add(&mut self, from: &Place, matrix: Option<Matrix>) -> Place {
        let length = matrix.as_ref().map_or(from.length, Matrix::bytes);
        let at = self.length.next_multiple_of(ALIGNMENT);
        self.parts.push(Part { from: from.offset..from.offset + from.length, at, matrix });
        self.length = at + length;
        Place { file: self.name.clone(), offset: at, length }
    }

    /// Writes the weights into a file in `folder`, if they are not there, and returns that.
    pub(super) fn written(&self, source: &Path, folder: &Path) -> io::Result<PathBuf> {
        let Self { name, parts, length } = self;
        fs::create_dir_all(folder)?;
        let folder = folder.canonicalize()?;
        if folder.to_str().is_none() {
            return Err(io::Error::other("its name is no text"));
        }
        let file = folder.join(name);
        let is_there = || file.metadata().is_ok_and(|there| there.len() == *length);
        if is_there() {
            // Who may not tell that it is used leaves that to its owner.
            let _ = File::open(&file).and_then(|file| file.set_modified(SystemTime::now()));
            return Ok(file);
        }
        let partial = file.with_extension("partial");
        // Who is ended half-way leaves no more than the next one overwrites.
        let target = locked(&partial)?;
        if is_there() {
            let _ = fs::remove_file(&partial);
            return Ok(file);
        }
        let write = || {
            target.set_len(0)?;
            let mut target = BufWriter::with_capacity(1 << 20, &target);
            write_parts(parts, &mut File::open(source)?, &mut target)?;
            // Only what is whole is ever seen under its name, also after the power has failed.
            target.into_inner()?.sync_all()?;
            fs::rename(&partial, &file)
        };
        write().inspect_err(|_| drop(fs::remove_file(&partial)))?;
        remove_unused(&folder);
        Ok(file)
    }

    /// What the file is to be called: by the graph's file, by when that was last changed, and by what is made of it.
    fn name(source: &Path, wanted: &impl std::fmt::Debug) -> io::Result<String> {
        let file = source.metadata()?;
        let changed = (file.ino(), file.len(), file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec());
        let hash = Sha256::digest(format!("{REVISION} {source:?} {changed:?} {wanted:?}"));
        Ok(hash[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>() + ".weights")
    }
}

impl Matrix {
    pub(super) fn bytes(&self) -> u64 {
        self.shape[0] * (self.columns.end - self.columns.start) * size_of::<f32>() as u64
    }

    /// The columns of the matrix `values`, row by row.
    fn transposed(&self, values: &[[u8; 4]]) -> Vec<[u8; 4]> {
        let [rows, width] = self.shape.map(|size| size as usize);
        let columns = self.columns.start as usize..self.columns.end as usize;
        let mut transposed = vec![[0; 4]; rows * columns.len()];
        for top in (0..rows).step_by(SQUARE) {
            for left in columns.clone().step_by(SQUARE) {
                for column in left..(left + SQUARE).min(columns.end) {
                    let line = &mut transposed[(column - columns.start) * rows..][..rows];
                    for row in top..(top + SQUARE).min(rows) {
                        line[row] = values[row * width + column];
                    }
                }
            }
        }
        transposed
    }
}

/// Writes `parts`, which are in the file `source`, to their places.
fn write_parts(parts: &[Part], source: &mut File, target: &mut impl Write) -> io::Result<()> {
    let mut end = 0;
    let (mut matrix_from, mut values) = (&(0..0), Vec::new());
    for Part { from, at, matrix } in parts {
        io::copy(&mut io::repeat(0).take(at - end), target)?;
        let bytes = from.end - from.start;
        match matrix {
            None => {
                source.seek(SeekFrom::Start(from.start))?;
                if io::copy(&mut Read::take(&mut *source, bytes), target)? != bytes {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                end = at + bytes;
            }
            Some(matrix) => {
                // The blocks of one follow each other.
                if from != matrix_from {
                    source.seek(SeekFrom::Start(from.start))?;
                    values.resize((bytes / 4) as usize, [0; 4]);
                    source.read_exact(values.as_flattened_mut())?;
                    matrix_from = from;
                }
                target.write_all(matrix.transposed(&values).as_flattened())?;
                end = at + matrix.bytes();
            }
        }
    }
    Ok(())
}

/// The file `path`, new or what is left of an earlier one, while nobody else has it so.
fn locked(path: &Path) -> io::Result<File> {
    let give_up = Instant::now() + LONGEST_WRITING;
    loop {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        while let Err(error) = file.try_lock() {
            match error {
                TryLockError::WouldBlock if Instant::now() < give_up => std::thread::sleep(POLL),
                error => return Err(error.into()),
            }
        }
        // Who had it before may have given it another name, or removed it.
        let is_still = |there: fs::Metadata| file.metadata().is_ok_and(|file| file.ino() == there.ino());
        if fs::metadata(path).is_ok_and(is_still) {
            return Ok(file);
        }
    }
}

/// Removes what no session has been opened with for [`UNUSED`].
fn remove_unused(folder: &Path) {
    for file in fs::read_dir(folder).into_iter().flatten().flatten() {
        let used = file.metadata().and_then(|file| file.modified());
        if used.is_ok_and(|used| used.elapsed().is_ok_and(|time| time > UNUSED)) {
            let _ = fs::remove_file(file.path());
        }
    }
}
