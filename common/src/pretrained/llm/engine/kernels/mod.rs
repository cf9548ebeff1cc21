//! The arithmetic of the forward pass, compiled for several instruction sets and chosen at run
//! time, so that a portable build runs at the machine's speed.
//!
//! | file | holds |
//! |---|---|
//! | `gemm.rs` | f32 matrix products by panels of weights |
//! | `rows.rs` | RMSNorm, softmax, SiLU, GELU, rotary embedding, dot products: plain loops |
//! | `blocks.rs` | block-quantised weights |
//! | `activations.rs` | activations rounded to int8 |
//! | `tiles.rs` | products of the two |
//!
//! This folder is the engine's only unsafe code. The unsafe parts are calls of functions compiled
//! with `#[target_feature]`, guarded by [`Isa::detect`]; vector loads and stores whose bounds are
//! asserted first; and products into columns that one thread has to itself.

mod activations;
mod blocks;
mod gemm;
mod rows;
mod tiles;

pub(super) use activations::Activations;
pub(super) use blocks::{BLOCK, Block, Packed, PackedKind};
pub(super) use gemm::{Panels, matmul_panels};
pub(super) use rows::{dot, exp_sum, gelu_gate, rms_norm, rotate_half, silu_gate, softmax};

/// Instruction set of a kernel call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Isa {
    /// What the build targets, without run-time checks.
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The best set of this machine. The checks are cached by the standard library.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Every set that this machine can run, worst first.
    #[cfg(test)]
    pub(super) fn available() -> Vec<Self> {
        let all = [
            Self::Portable,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512,
        ];
        all.into_iter().filter(|&isa| isa <= Self::detect()).collect()
    }
}
