use std::fmt;
use std::str::FromStr;

use crate::text::closest;

/// Every architecture that a kernel may be built for, oldest first. A trailing `a` unlocks the instructions of that one chip (wgmma, tcgen05).
pub const SUPPORTED_ARCHS: [&str; 17] = [
    "sm_80", "sm_86", "sm_87", "sm_88", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_103", "sm_103a", "sm_110",
    "sm_110a", "sm_120", "sm_120a", "sm_121", "sm_121a",
];

/// A GPU architecture by NVIDIA's name, such as `sm_90a`; always one of [`SUPPORTED_ARCHS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    number: u32,
    specific: bool,
}

impl Arch {
    /// Compute capability as one number: 90 for `sm_90a`, 120 for `sm_120`.
    pub fn number(self) -> u32 {
        self.number
    }

    /// Whether code for this architecture runs on one chip only (`sm_90a`) and may use that chip's own instructions.
    pub fn is_specific(self) -> bool {
        self.specific
    }

    /// Whether blocks may work in clusters.
    pub fn has_clusters(self) -> bool {
        self.number >= 90
    }

    /// Whether warpgroups may multiply: wgmma, which one chip has.
    pub fn has_wgmma(self) -> bool {
        self.number == 90 && self.specific
    }

    /// Bytes of shared memory that a block may ask for at most (CUDA programming guide, technical specifications per compute capability).
    pub fn shared_limit(self) -> usize {
        match self.number {
            80 | 87 => 163 << 10,
            90..120 => 227 << 10,
            _ => 99 << 10,
        }
    }

    /// Whether a cubin for this architecture runs on a device of compute capability `major.minor`.
    ///
    /// Plain code runs on the same major version with an equal or later minor one, specific code on exactly its own chip.
    pub fn runs_on(self, major: u32, minor: u32) -> bool {
        let (own_major, own_minor) = (self.number / 10, self.number % 10);
        own_major == major && if self.specific { own_minor == minor } else { own_minor <= minor }
    }

    /// The best architecture to build for on a device of compute capability `major.minor`: the latest that runs there, specific before plain.
    ///
    /// # Errors
    /// When no supported architecture runs on such a device.
    pub fn for_device(major: u32, minor: u32) -> anyhow::Result<Arch> {
        let fitting = SUPPORTED_ARCHS.iter().filter_map(|name| parse(name)).filter(|arch| arch.runs_on(major, minor));
        fitting.max().ok_or_else(|| {
            let supported = SUPPORTED_ARCHS.join(", ");
            anyhow::anyhow!("nothing can be built for compute capability {major}.{minor}; supported: {supported}")
        })
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.number, if self.specific { "a" } else { "" })
    }
}

impl FromStr for Arch {
    type Err = anyhow::Error;

    /// Reads `sm_90a`.
    ///
    /// # Errors
    /// On anything outside [`SUPPORTED_ARCHS`], with the nearest name as a suggestion.
    fn from_str(text: &str) -> anyhow::Result<Arch> {
        if let Some(arch) = parse(text).filter(|_| SUPPORTED_ARCHS.contains(&text)) {
            return Ok(arch);
        }
        let suggestion = nearest(text).map_or(String::new(), |name| format!("; did you mean `{name}`?"));
        anyhow::bail!("unknown GPU architecture `{text}`{suggestion} (supported: {})", SUPPORTED_ARCHS.join(", "))
    }
}

fn parse(text: &str) -> Option<Arch> {
    let digits = text.strip_prefix("sm_")?;
    let (digits, specific) = digits.strip_suffix('a').map_or((digits, false), |digits| (digits, true));
    Some(Arch { number: digits.parse().ok()?, specific })
}

/// The supported name that `text` most likely meant: `90a`, `compute_90`, `8.6`, and slips.
fn nearest(text: &str) -> Option<&'static str> {
    let folded = text.to_ascii_lowercase();
    let bare = folded.trim_start_matches(|c: char| !c.is_ascii_digit()).replace('.', "");
    let same_chip = SUPPORTED_ARCHS.into_iter().find(|name| name.strip_prefix("sm_") == Some(bare.as_str()));
    same_chip.or_else(|| closest(&folded, SUPPORTED_ARCHS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arch(name: &str) -> Arch {
        name.parse().unwrap()
    }

    #[test]
    fn every_supported_name_reads_and_prints_as_itself() {
        for name in SUPPORTED_ARCHS {
            assert_eq!(arch(name).to_string(), name);
        }
    }

    #[test]
    fn a_bad_name_gets_a_suggestion() {
        let message = |text: &str| text.parse::<Arch>().unwrap_err().to_string();
        assert!(message("90a").contains("did you mean `sm_90a`?"));
        assert!(message("SM_90").contains("did you mean `sm_90`?"));
        assert!(message("compute_120").contains("did you mean `sm_120`?"));
        assert!(message("8.6").contains("did you mean `sm_86`?"));
        assert!(message("sm_90b").contains("did you mean `sm_90`?"));
        assert!(!message("turing").contains("did you mean"));
        assert!(message("sm_090").contains("(supported: sm_80, sm_86"));
    }

    #[test]
    fn specific_code_runs_on_its_own_chip_only() {
        assert!(arch("sm_90a").runs_on(9, 0) && !arch("sm_90a").runs_on(10, 0));
        assert!(arch("sm_80").runs_on(8, 6) && !arch("sm_86").runs_on(8, 0) && !arch("sm_80").runs_on(9, 0));
        assert!(arch("sm_100").runs_on(10, 3) && !arch("sm_100a").runs_on(10, 3));
    }

    #[test]
    fn a_device_gets_the_latest_architecture_it_runs() {
        let best = |major, minor| Arch::for_device(major, minor).unwrap().to_string();
        assert_eq!(best(9, 0), "sm_90a");
        assert_eq!(best(8, 6), "sm_86");
        assert_eq!(best(8, 9), "sm_89");
        assert_eq!(best(12, 0), "sm_120a");
        assert_eq!(best(10, 7), "sm_103");
        assert!(Arch::for_device(7, 5).unwrap_err().to_string().contains("compute capability 7.5"));
    }
}
