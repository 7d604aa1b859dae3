//! How long the decision takes that stands before every token, when it is as much work as it can be: see
//! `Case::hardest`. It must take 20 µs at most, so that nobody sees it in the time that a pod waits for its token.
//! Verifying the seal's signature is a part of gathering facts, and measured beside it.

use std::hint::black_box;

use controller::Case;
use criterion::{Criterion, criterion_group, criterion_main};

fn decision(criterion: &mut Criterion) {
    let (usual, hardest) = (Case::granted(), Case::hardest());
    criterion.bench_function("decision, usual", |bencher| bencher.iter(|| black_box(&usual).decision()));
    criterion.bench_function("decision, hardest", |bencher| bencher.iter(|| black_box(&hardest).decision()));
    let verification = hardest.verification();
    criterion.bench_function("signature of a seal", |bencher| bencher.iter(&verification));
}

criterion_group!(benches, decision);
criterion_main!(benches);
