//! Element-wise functions and short sums. Each is written once, over eight lanes, and compiled for every instruction set.
use fusec::ir::{Activation, Function, NormKind};

/// The widest instructions this machine has. Only [`Isa::detect`] makes one that is not portable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Isa(Level);

/// Each has what those before it have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// What the machine has.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            let more = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni");
            return Isa(if more { Level::Avx512 } else { Level::Avx2 });
        }
        Isa(Level::Portable)
    }

    /// What processors' makers call them; empty for those that every machine has.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "AVX-512",
        }
    }

    /// Plain code only.
    #[cfg(test)]
    pub fn portable() -> Isa {
        Isa(Level::Portable)
    }

    /// What the machine has, and less.
    #[cfg(test)]
    pub fn all() -> Vec<Isa> {
        let mut all = vec![Isa::portable()];
        #[cfg(target_arch = "x86_64")]
        all.extend([Isa(Level::Avx2), Isa(Level::Avx512)].into_iter().filter(|isa| isa.0 <= Isa::detect().0));
        all
    }

    /// Whether AVX2, FMA and F16C are there.
    #[cfg(target_arch = "x86_64")]
    pub fn has_avx2(self) -> bool {
        self.0 >= Level::Avx2
    }

    /// Whether AVX-512 F, BW and VNNI are there.
    #[cfg(target_arch = "x86_64")]
    pub fn has_avx512(self) -> bool {
        self.0 >= Level::Avx512
    }
}

/// Compiles a function's body twice, plainly and for AVX2, and picks by `isa`, the first argument. The sums in it are in the same
/// order both times and nothing is contracted, so both give the same bits.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* pub(crate) fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(unsafe_code)]
        pub(crate) fn $name(isa: $crate::cpu::math::Isa, $($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $type),*) $(-> $result)? {
                    body($($arg),*)
                }
                if isa.has_avx2() {
                    // SAFETY: `Isa::detect` found AVX2.
                    return unsafe { wide($($arg),*) };
                }
            }
            let _ = isa;
            body($($arg),*)
        }
    };
}
pub(crate) use for_each_isa;

/// Lanes of a sum.
pub(crate) const LANES: usize = 8;

/// `e^x` to 2 units in the last place; 0 (nearly) below -87, capped above 88; NaN stays NaN. Written so that it vectorises.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut y = 1.987_569_1e-4;
    y = y * r + 1.398_199_9e-3;
    y = y * r + 8.333_452e-3;
    y = y * r + 4.166_579_6e-2;
    y = y * r + 1.666_666_5e-1;
    y = y * r + 0.5;
    y = y * (r * r) + r + 1.0;
    // The low bits of `shifted` are n; moved to the exponent and added to that of 1 they make 2^n.
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// `erfc` by a rational fit, relative error below 1.2e-7 (Press et al., Numerical Recipes).
#[inline(always)]
fn erfc(x: f32) -> f32 {
    let z = x.abs() as f64;
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut p = 0.170_872_77;
    for c in [
        -0.822_152_23,
        1.488_515_87,
        -1.135_203_98,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_68,
        -1.265_512_23,
    ] {
        p = p * t + c;
    }
    let tail = t * (p - z * z).exp();
    (if x >= 0.0 { tail } else { 2.0 - tail }) as f32
}

#[inline(always)]
fn map(values: &mut [f32], f: impl Fn(f32) -> f32) {
    for value in values {
        *value = f(*value);
    }
}

for_each_isa! {
    /// `values = f(values)`.
    pub(crate) fn activate(activation: Activation, values: &mut [f32]) {
        match activation {
            Activation::Silu => map(values, |x| x / (1.0 + exp(-x))),
            Activation::Gelu => map(values, |x| 0.5 * x * erfc(-x * std::f32::consts::FRAC_1_SQRT_2)),
            Activation::GeluTanh => map(values, |x| {
                let inner = 0.797_884_6 * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + tanh(inner))
            }),
            Activation::Relu => map(values, |x| if x < 0.0 { 0.0 } else { x }),
            Activation::Relu2 => map(values, |x| if x < 0.0 { 0.0 } else { x * x }),
        }
    }
}

/// `values = f(values)`, of functions that are for few values.
pub(crate) fn apply(function: Function, values: &mut [f32]) {
    match function {
        Function::Sigmoid => map(values, |x| 1.0 / (1.0 + exp(-x))),
        Function::Softplus => map(values, |x| x.max(0.0) + (-x.abs()).exp().ln_1p()),
        Function::Exp => map(values, f32::exp),
    }
}

for_each_isa! {
    /// `values = factor · values`.
    pub(crate) fn scale(factor: f32, values: &mut [f32]) {
        map(values, |x| factor * x);
    }
}

for_each_isa! {
    /// `values = cap · tanh(values / cap)`.
    pub(crate) fn softcap(cap: f32, values: &mut [f32]) {
        map(values, |x| cap * tanh(x / cap));
    }
}

for_each_isa! {
    /// `a += b`.
    pub(crate) fn add(a: &mut [f32], b: &[f32]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
    }
}

for_each_isa! {
    /// `a *= b`.
    pub(crate) fn multiply(a: &mut [f32], b: &[f32]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a *= b;
        }
    }
}

for_each_isa! {
    /// `out = norm(x) · weight + bias`. An absent weight or bias is empty.
    pub(crate) fn normalise(kind: NormKind, eps: f32, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
        let n = x.len() as f32;
        let mean = match kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum_of(x, |x| x) / n,
        };
        let variance = sum_of(x, |x| (x - mean) * (x - mean)) / n;
        let factor = 1.0 / (variance + eps).sqrt();
        for (out, x) in out.iter_mut().zip(x) {
            *out = (x - mean) * factor;
        }
        for (out, weight) in out.iter_mut().zip(weight) {
            *out *= weight;
        }
        for (out, bias) in out.iter_mut().zip(bias) {
            *out += bias;
        }
    }
}

for_each_isa! {
    /// Makes scores into softmax weights, not yet divided by their sum, which it returns. `sink` takes part in the sum only.
    pub(crate) fn exponentials(scores: &mut [f32], sink: Option<f32>) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = scores.as_chunks::<LANES>();
        for chunk in whole {
            for lane in 0..LANES {
                lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
            }
        }
        let mut max = sink.unwrap_or(f32::NEG_INFINITY);
        for &score in lanes.iter().chain(rest) {
            max = if score > max { score } else { max };
        }
        map(scores, |score| exp(score - max));
        sum_of(scores, |x| x) + sink.map_or(0.0, |sink| exp(sink - max))
    }
}

/// `Σ f(x)`, eight sums in turn, then those pairwise.
#[inline(always)]
pub(crate) fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            lanes[lane] += f(chunk[lane]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += f(value);
    }
    sum_lanes(lanes)
}

/// The sum of eight lanes, halves onto halves.
#[inline(always)]
pub(crate) fn sum_lanes(l: [f32; LANES]) -> f32 {
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative(a: f32, b: f64) -> f64 {
        (a as f64 - b).abs() / b.abs().max(1e-30)
    }

    #[test]
    fn exp_is_within_two_units() {
        let mut x = -86.9f32;
        while x < 87.9 {
            assert!(relative(exp(x), (x as f64).exp()) < 2.5e-7, "exp({x}) = {}", exp(x));
            x += 0.0137;
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn activations_match_their_definitions() {
        // erf at a few points, from tables.
        for (x, erf) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
            assert!((erfc(x) as f64 - (1.0 - erf)).abs() < 2e-7);
            assert!((erfc(-x) as f64 - (1.0 + erf)).abs() < 2e-7);
        }
        for isa in [Isa::detect(), Isa::portable()] {
            let x: Vec<f32> = (-80..80).map(|i| i as f32 * 0.11).collect();
            for activation in Activation::ALL {
                let mut y = x.clone();
                activate(isa, activation, &mut y);
                for (&x, &y) in x.iter().zip(&y) {
                    let x = x as f64;
                    let want = match activation {
                        Activation::Silu => x / (1.0 + (-x).exp()),
                        Activation::Gelu => 0.5 * x * erfc((-x / 2f64.sqrt()) as f32) as f64,
                        Activation::GeluTanh => {
                            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
                        }
                        Activation::Relu => x.max(0.0),
                        Activation::Relu2 => x.max(0.0).powi(2),
                    };
                    assert!(
                        (y as f64 - want).abs() < 1e-6 * (1.0 + want.abs()),
                        "{activation:?}({x}) = {y}, not {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn wide_and_portable_code_give_the_same_bits() {
        let x: Vec<f32> = (0..77).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.07).collect();
        let run = |isa| {
            let mut y = vec![0.0; 77];
            normalise(isa, NormKind::Layer, 1e-5, &x, &x, &x, &mut y);
            activate(isa, Activation::Silu, &mut y);
            let sum = exponentials(isa, &mut y, Some(0.3));
            y.push(sum);
            y.iter().map(|y| y.to_bits()).collect::<Vec<u32>>()
        };
        assert_eq!(run(Isa::detect()), run(Isa::portable()));
    }
}
