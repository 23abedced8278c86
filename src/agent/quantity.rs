//! Kubernetes quantities, `250m`, `64Mi`, `1e3`: exact, in integers (apimachinery, pkg/api/resource/quantity.go).
//!
//! A number with an optional sign and fraction, then a binary suffix (Ki to Ei), a decimal one (n u m k M G T P E) or a decimal
//! exponent. Anything finer than a nano is rounded up, as there. Which values a field admits is not decided here.

use std::fmt;

const NANOS: i128 = 1_000_000_000;
/// The largest quantity there is; Kubernetes silently lowers larger ones to it, which would be a limit nobody asked for.
const MAX: i128 = i64::MAX as i128 * NANOS;
/// Digits of a number; more cannot be within [`MAX`] and finer than a nano alike.
const MAX_DIGITS: usize = 64;

/// An amount, kept in billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Quantity(i128);

/// Why a text is no quantity, and what may have been meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAQuantity {
    pub message: String,
    pub remedy: String,
}

fn wrong(message: impl Into<String>, remedy: impl Into<String>) -> NotAQuantity {
    NotAQuantity { message: message.into(), remedy: remedy.into() }
}

impl Quantity {
    pub const ZERO: Quantity = Quantity(0);

    /// `units` whole ones (bytes, cores).
    pub fn from_units(units: i64) -> Self {
        Quantity(i128::from(units) * NANOS)
    }

    /// Thousandths, rounded up: millicores of a cpu quantity.
    pub fn millis(self) -> i64 {
        self.scaled(NANOS / 1000)
    }

    /// Whole ones, rounded up: bytes of a memory quantity.
    pub fn units(self) -> i64 {
        self.scaled(NANOS)
    }

    /// `self / divisor`, rounded up, as resourceFieldRef has it. A divisor that is not positive counts as 1.
    pub fn divided_by(self, divisor: Quantity) -> i64 {
        let divisor = if divisor.0 > 0 { divisor.0 } else { NANOS };
        self.scaled(divisor)
    }

    fn scaled(self, unit: i128) -> i64 {
        let up = self.0.div_euclid(unit) + i128::from(self.0.rem_euclid(unit) != 0);
        i64::try_from(up).unwrap_or(if up > 0 { i64::MAX } else { i64::MIN })
    }

    /// Whether it has a fraction.
    pub fn is_whole(self) -> bool {
        self.0 % NANOS == 0
    }

    /// The sum, at most the largest quantity.
    #[must_use]
    pub fn plus(self, other: Quantity) -> Quantity {
        Quantity((self.0 + other.0).clamp(-MAX, MAX))
    }

    /// Below zero.
    pub fn is_negative(self) -> bool {
        self.0 < 0
    }
}

impl fmt::Display for Quantity {
    /// The shortest decimal writing: `250m`, `67108864`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, suffix) = match self.0 {
            n if n % NANOS == 0 => (NANOS, ""),
            n if n % (NANOS / 1_000) == 0 => (NANOS / 1_000, "m"),
            n if n % (NANOS / 1_000_000) == 0 => (NANOS / 1_000_000, "u"),
            _ => (1, "n"),
        };
        write!(f, "{}{suffix}", self.0 / unit)
    }
}

impl std::str::FromStr for Quantity {
    type Err = NotAQuantity;

    fn from_str(text: &str) -> Result<Self, NotAQuantity> {
        if text.is_empty() {
            return Err(wrong("no number", "write a quantity like 250m or 64Mi"));
        }
        if text.trim() != text {
            let place = if text.trim_end() == text { "start" } else { "end" };
            return Err(wrong(format!("a space at the {place}"), format!("write {:?}", text.trim())));
        }
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let number_len = unsigned.bytes().position(|b| !b.is_ascii_digit() && b != b'.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_len);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(wrong("not a number with a unit", "write a quantity like 250m or 64Mi"));
        }
        if whole.len() + fraction.len() > MAX_DIGITS {
            return Err(wrong(format!("more than {MAX_DIGITS} digits"), "write it with a unit, like 64Gi"));
        }
        let scale = Scale::of(suffix).ok_or_else(|| unknown_unit(number, suffix))?;
        let nanos = scale
            .nanos(whole, fraction)
            .filter(|n| *n <= MAX)
            .ok_or_else(|| wrong("larger than a quantity can be", format!("the largest is {}", i64::MAX)))?;
        Ok(Quantity(if text.starts_with('-') { -nanos } else { nanos }))
    }
}

/// What a suffix multiplies by.
enum Scale {
    /// 2 to the power of ten times this.
    Binary(u32),
    /// 10 to the power of this.
    Decimal(i32),
}

impl Scale {
    fn of(suffix: &str) -> Option<Scale> {
        Some(match suffix {
            "" => Scale::Decimal(0),
            "Ki" => Scale::Binary(1),
            "Mi" => Scale::Binary(2),
            "Gi" => Scale::Binary(3),
            "Ti" => Scale::Binary(4),
            "Pi" => Scale::Binary(5),
            "Ei" => Scale::Binary(6),
            "n" => Scale::Decimal(-9),
            "u" => Scale::Decimal(-6),
            "m" => Scale::Decimal(-3),
            "k" => Scale::Decimal(3),
            "M" => Scale::Decimal(6),
            "G" => Scale::Decimal(9),
            "T" => Scale::Decimal(12),
            "P" => Scale::Decimal(15),
            "E" => Scale::Decimal(18),
            _ => {
                let exponent = suffix.strip_prefix(['e', 'E'])?;
                let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                // An exponent that does not fit is far beyond every bound, on whichever side.
                let far = if exponent.starts_with('-') { -1000 } else { 1000 };
                Scale::Decimal(exponent.parse::<i32>().unwrap_or(far).clamp(-1000, 1000))
            }
        })
    }

    /// The number in nanos, rounded up; `None` when it does not fit.
    fn nanos(&self, whole: &str, fraction: &str) -> Option<i128> {
        let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
        let first = digits.iter().position(|d| *d != b'0').unwrap_or(digits.len());
        digits.drain(..first);
        if digits.is_empty() {
            return Some(0);
        }
        let (mut exponent, factor) = match self {
            Scale::Binary(power) => (9, 1i128 << (10 * power)),
            Scale::Decimal(power) => (9 + power, 1),
        };
        exponent -= i32::try_from(fraction.len()).ok()?;
        // digits * 10^exponent * factor, with what lies right of the point only deciding whether to round up. The factor must
        // multiply before that cut, so it joins the digits by long multiplication.
        let mut product: Vec<u8> = multiply(&digits, factor);
        let mut up = false;
        while exponent < 0 {
            match product.pop() {
                Some(digit) => up |= digit != 0,
                None => break,
            }
            exponent += 1;
        }
        let mut value: i128 = 0;
        for digit in product {
            value = value.checked_mul(10)?.checked_add(i128::from(digit))?;
        }
        for _ in 0..exponent.max(0) {
            value = value.checked_mul(10)?;
        }
        value.checked_add(i128::from(up))
    }
}

/// The decimal digits of `digits * factor`, most significant first; at most [`MAX_DIGITS`] plus 19 of them.
fn multiply(digits: &[u8], factor: i128) -> Vec<u8> {
    let mut result = Vec::with_capacity(digits.len() + 20);
    let mut carry: i128 = 0;
    for digit in digits.iter().rev() {
        carry += i128::from(digit - b'0') * factor;
        result.push(low_digit(carry));
        carry /= 10;
    }
    while carry > 0 {
        result.push(low_digit(carry));
        carry /= 10;
    }
    result.reverse();
    result
}

fn low_digit(n: i128) -> u8 {
    u8::try_from(n % 10).unwrap_or(0)
}

fn unknown_unit(number: &str, suffix: &str) -> NotAQuantity {
    const UNITS: &str = "units are n u m k M G T P E, Ki Mi Gi Ti Pi Ei, or an exponent like e3";
    let meant = match suffix.trim() {
        "K" => "k",
        "KB" | "kB" | "kb" | "KiB" | "Kib" | "ki" | "KI" => "Ki",
        "MB" | "mb" | "Mb" | "MiB" | "Mib" | "mi" | "MI" => "Mi",
        "GB" | "gb" | "Gb" | "GiB" | "Gib" | "gi" | "GI" | "g" => "Gi",
        "TB" | "tb" | "TiB" | "ti" | "TI" | "t" => "Ti",
        "mcpu" | "millicores" => "m",
        "cpu" | "cpus" | "cores" | "b" | "B" => "",
        _ => return wrong(format!("{suffix:?} is no unit"), UNITS),
    };
    wrong(format!("{suffix:?} is no unit"), format!("did you mean {number}{meant}? {UNITS}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e:?}"))
    }

    #[test]
    fn documented_quantities_are_exact() {
        for (text, millis) in [
            ("250m", 250),
            ("0.1", 100),
            ("1", 1000),
            ("1e3", 1_000_000),
            ("100u", 1),
            ("1n", 1),
            ("1.5m", 2),
            ("-1", -1000),
        ] {
            assert_eq!(q(text).millis(), millis, "{text}");
        }
        for (text, units) in [
            ("64Mi", 64 << 20),
            ("128974848", 128_974_848),
            ("129e6", 129_000_000),
            ("129M", 129_000_000),
            ("128974848000m", 128_974_848),
            ("123Mi", 123 << 20),
            ("1.5Gi", 3 << 29),
            ("0.5Ki", 512),
            ("128m", 1),
            ("1E", 1_000_000_000_000_000_000),
            ("1E2", 100),
            ("1Ei", 1 << 60),
            (".5", 1),
            ("5.", 5),
            ("+5", 5),
            ("1e-3", 1),
            ("0e999999999999", 0),
        ] {
            assert_eq!(q(text).units(), units, "{text}");
        }
    }

    #[test]
    fn a_fraction_below_a_nano_rounds_up_and_never_to_zero() {
        assert_eq!(q("0.0000000001"), q("1n"));
        assert_eq!(q("1.0000000001n"), q("2n"));
        assert_eq!(q("1e-1000"), q("1n"));
        assert_eq!(q("0.00000000000000000001Ki"), q("1n"));
    }

    #[test]
    fn what_is_no_quantity_says_what_to_write() {
        for (text, message, remedy) in [
            ("250m ", "a space at the end", "write \"250m\""),
            (" 1", "a space at the start", "write \"1\""),
            ("500x", "\"x\" is no unit", "units are"),
            ("64MB", "\"MB\" is no unit", "did you mean 64Mi?"),
            ("1K", "\"K\" is no unit", "did you mean 1k?"),
            ("", "no number", "write a quantity"),
            ("m", "not a number", "write a quantity"),
            ("1.2.3", "not a number", "write a quantity"),
            ("1e", "\"e\" is no unit", "units are"),
            ("1 Gi", "\" Gi\" is no unit", "units are"),
            ("9223372036854775808", "larger than", "the largest is"),
            ("8Ei", "larger than", "the largest is"),
            ("1e1000", "larger than", "the largest is"),
            ("0x10", "\"x10\" is no unit", "units are"),
        ] {
            let error = text.parse::<Quantity>().expect_err(text);
            assert!(error.message.starts_with(message) && error.remedy.starts_with(remedy), "{text}: {error:?}");
        }
        assert!("9".repeat(65).parse::<Quantity>().is_err());
        assert_eq!(q("9223372036854775807").units(), i64::MAX);
    }

    #[test]
    fn dividing_rounds_up() {
        assert_eq!((q("250m").divided_by(q("1")), q("250m").divided_by(q("1m"))), (1, 250));
        assert_eq!((q("64Mi").divided_by(q("1Mi")), q("65M").divided_by(q("1Mi"))), (64, 62));
        assert_eq!(q("3").divided_by(Quantity::ZERO), 3, "a zero divisor is the default one");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,80}") { let _ = text.parse::<Quantity>(); }

        #[test]
        fn no_quantity_soup_panics(text in "[-+0-9.eEmMkKiGnu ]{0,40}") { let _ = text.parse::<Quantity>(); }

        #[test]
        fn what_is_shown_reads_back_as_the_same(nanos in -MAX..=MAX) {
            let quantity = Quantity(nanos);
            prop_assert_eq!(q(&quantity.to_string()), quantity);
        }

        #[test]
        fn millicores_are_never_rounded_down(millis in 0i64..1_000_000, sub in 0i64..1_000_000) {
            let text = format!("{millis}.{sub:06}m");
            prop_assert_eq!(q(&text).millis(), millis + i64::from(sub != 0));
        }

        #[test]
        fn binary_units_are_powers_of_1024(n in 0i64..8192) {
            for (power, unit) in ["", "Ki", "Mi", "Gi", "Ti", "Pi"].iter().enumerate() {
                prop_assert_eq!(q(&format!("{n}{unit}")).units(), n << (10 * power));
            }
        }

        #[test]
        fn a_longer_writing_of_the_same_number_is_equal(n in 0u32..1_000_000, zeros in 0usize..20) {
            prop_assert_eq!(q(&format!("{n}")), q(&format!("{n}.{}", "0".repeat(zeros))));
            prop_assert_eq!(q(&format!("{n}")), q(&format!("{}{n}", "0".repeat(zeros))));
        }
    }
}
