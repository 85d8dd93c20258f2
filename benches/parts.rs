//! Micro-benchmarks of the parts an image passes on its way besides inference: `cargo bench`.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot start has nothing better to do")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use image::RgbImage;
use ndarray::Array3;
use serde_json::json;
use tokio::sync::oneshot;

use ocelli::batching::{BatchPolicy, BatchQueue, Job, Model, Role, Worker};
use ocelli::postprocess::{softmax, top_k};
use ocelli::preprocess::{DecodeLimits, ImageProcessor, decode};
use ocelli::telemetry::QueueMetrics;

const PHOTO: &[u8] = include_bytes!("../tests/fixtures/photos/coffee.jpg");
const LIMITS: DecodeLimits = DecodeLimits { max_pixels: 1 << 26 };

fn processor(resize: bool) -> ImageProcessor {
    let config = json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": resize, "size": {"shortest_edge": 256}, "resample": 3,
        "do_center_crop": true, "crop_size": {"height": 224, "width": 224},
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    });
    ImageProcessor::from_json(&config, None).unwrap()
}

fn preprocessing(criterion: &mut Criterion) {
    let photo = decode(PHOTO, &LIMITS).unwrap();
    let name = format!("{}x{}", photo.width(), photo.height());
    criterion.bench_function(&format!("decode/jpeg {name}"), |bencher| {
        bencher.iter(|| decode(black_box(PHOTO), &LIMITS).unwrap());
    });
    let resize = processor(true);
    criterion.bench_function(&format!("resize and crop/{name} to 224x224"), |bencher| {
        bencher.iter(|| resize.prepare(black_box(&photo)));
    });
    let cropped = processor(false).prepare(&RgbImage::new(224, 224));
    let mut tensor = cropped.tensor();
    criterion.bench_function("normalise/224x224", |bencher| {
        bencher.iter(|| black_box(&cropped).write_tensor(tensor.view_mut()));
    });
    for side in [2, 7, 16] {
        let mut blocks = Array3::zeros((224 / side, 224 / side, 3 * side * side));
        criterion.bench_function(&format!("normalise/224x224 in blocks of {side}x{side}"), |bencher| {
            bencher.iter(|| black_box(&cropped).write_blocks(blocks.view_mut()));
        });
    }
}

fn answers(criterion: &mut Criterion) {
    // Logits in no order, the same in every run.
    let logits: Vec<f32> =
        (0..1000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 16) as f32 / 8192.0).collect();
    let labels: Vec<String> = (0..1000).map(|index| format!("label {index}")).collect();
    criterion.bench_function("softmax and top-k/5 of 1000", |bencher| {
        bencher.iter(|| top_k(&softmax(black_box(&logits)), &labels, 5));
    });
}

/// Answers at once, so that what is left is the queue.
struct Echo;

impl Model for Echo {
    type Input = u32;
    type Output = u32;

    fn run(&mut self, batch: &[u32]) -> Result<Vec<u32>, String> {
        Ok(batch.to_vec())
    }
}

fn queue(criterion: &mut Criterion) {
    const JOBS: u32 = 64;
    let queue = Arc::new(BatchQueue::<Echo>::new(1024, QueueMetrics::default(), Arc::default()));
    let crew = queue.relieve(BatchPolicy::up_to(8), 1);
    let worker = Worker::spawn("echo".to_owned(), Arc::clone(&queue), Role::Instance, Echo, || Ok(Echo)).unwrap();
    worker.begin(crew);
    let deadline = Instant::now() + Duration::from_secs(3600);
    let jobs = || {
        let job = |input| {
            let (reply, answer) = oneshot::channel();
            (Job::<Echo> { input, deadline, reply, permit: None }, answer)
        };
        (0..JOBS).map(job).unzip()
    };
    let mut group = criterion.benchmark_group("queue");
    group.throughput(Throughput::Elements(u64::from(JOBS)));
    group.bench_function("64 jobs there and back", |bencher| {
        bencher.iter_batched(
            jobs,
            |(jobs, answers): (Vec<_>, Vec<_>)| {
                for job in jobs {
                    queue.push(job).unwrap();
                }
                for answer in answers {
                    answer.blocking_recv().unwrap().unwrap();
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
    queue.close();
}

criterion_group! {
    name = parts;
    // Seconds, not minutes, for all of them.
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = preprocessing, answers, queue
}
criterion_main!(parts);
