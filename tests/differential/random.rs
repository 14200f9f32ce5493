//! Values by chance: half of them the extremes of their type, the others anything.

use rand::Rng;
use rand::rngs::StdRng;

use super::schema::KeyPart;
use crate::values;

/// An SQL expression for a value of `pg_type`.
pub fn value(rng: &mut StdRng, pg_type: &str) -> String {
    if rng.random_ratio(1, 8) {
        return "NULL".to_owned();
    }
    if let Some(element) = pg_type.strip_suffix("[]").filter(|element| !element.ends_with("[]")) {
        let length = rng.random_range(0..5);
        let elements: Vec<String> = (0..length).map(|_| value(rng, element)).collect();
        return format!("ARRAY[{}]::{pg_type}", elements.join(", "));
    }
    let case = values::of(pg_type);
    if rng.random_bool(0.5) {
        return values::literal(case.values[rng.random_range(0..case.values.len())]);
    }
    match pg_type {
        "int2" => format!("'{}'", rng.random::<i16>()),
        "int4" => format!("'{}'", rng.random::<i32>()),
        "int8" => format!("'{}'", rng.random::<i64>()),
        "positive" => rng.random_range(1..=i32::MAX).to_string(),
        "oid" => rng.random::<u32>().to_string(),
        "float4" => format!("'{:e}'", finite(|| f32::from_bits(rng.random()), f32::is_finite)),
        "float8" => format!("'{:e}'", finite(|| f64::from_bits(rng.random()), f64::is_finite)),
        "numeric(10,2)" => format!("'{}e-2'", rng.random_range(-9_999_999_999_i64..=9_999_999_999)),
        "numeric(38,0)" => format!("'{}'", rng.random_range(-10_i128.pow(38) + 1..10_i128.pow(38))),
        "numeric(38,38)" => format!("'{}e-38'", rng.random_range(-10_i128.pow(38) + 1..10_i128.pow(38))),
        "numeric" => format!("'{}e{}'", rng.random::<i64>(), rng.random_range(-40..40)),
        "price" => format!("'{}e-2'", rng.random_range(-999_999..=999_999)),
        "text" => values::literal(&text(rng, 40)),
        "varchar(20)" | "citext" => values::literal(&text(rng, 20)),
        "char(6)" => values::literal(&text(rng, 6)),
        "bytea" => {
            let bytes: Vec<String> =
                (0..rng.random_range(0..30)).map(|_| format!("{:02x}", rng.random::<u8>())).collect();
            format!("'\\x{}'", bytes.concat())
        }
        // Whole days around 1970, before and after.
        "date" => format!("date '1970-01-01' + {}", rng.random_range(-2_000_000..2_000_000)),
        "time" => format!("time '00:00' + {} * interval '1 us'", rng.random_range(0..86_400_000_000_u64)),
        "timestamp" => {
            format!("timestamp '1970-01-01' + {} * interval '1 us'", rng.random_range(-(1_i64 << 55)..1 << 60))
        }
        "timestamptz" => {
            format!(
                "timestamptz '1970-01-01 00:00:00+00' + {} * interval '1 us'",
                rng.random_range(-(1_i64 << 55)..1 << 60)
            )
        }
        "interval" => format!(
            "interval '{} months' + {} * interval '1 us'",
            rng.random_range(-900..900),
            rng.random_range(-(1_i64 << 50)..1 << 50)
        ),
        "uuid" => format!("'{:032x}'", rng.random::<u128>()),
        "json" | "jsonb" => {
            format!("'{{\"n\": {}, \"list\": [{}, null]}}'", rng.random::<i32>(), rng.random_range(0..10))
        }
        "inet" => format!("'{}.0.0.{}/{}'", rng.random::<u8>(), rng.random::<u8>(), rng.random_range(0..=32)),
        "varbit" => format!("'{:b}'", rng.random::<u64>()),
        "point" => format!("'({},{})'", rng.random::<i32>(), rng.random::<f32>()),
        "pair" => format!("ROW({}, {})::pair", rng.random::<i32>(), values::literal(&text(rng, 10))),
        _ => values::literal(case.values[rng.random_range(0..case.values.len())]),
    }
}

/// An SQL expression for a value of 10 to 50 KB.
pub fn large(rng: &mut StdRng, pg_type: &str) -> String {
    let (seed, times) = (rng.random::<u32>(), rng.random_range(320..1600));
    match pg_type {
        "jsonb" => format!("jsonb_build_object('seed', {seed}, 'pad', repeat(md5('{seed}'), {times}))"),
        "bytea" => format!("decode(repeat(md5('{seed}'), {times}), 'hex')"),
        _ => format!("repeat(md5('{seed}'), {times})"),
    }
}

/// The literal of a part of the key with this number.
pub fn key(part: KeyPart, number: u32) -> String {
    match part {
        KeyPart::Number => number.to_string(),
        KeyPart::Text => match number % 6 {
            0 if number == 0 => "''".to_owned(),
            0 => format!("'k {number} '"),
            1 => format!("'Ключ-{number}'"),
            2 => format!("'it''s {number}'"),
            3 => format!("'a/b=c&{number}'"),
            4 => format!("'\\{number}\"'"),
            _ => format!("'{}'", "long ".repeat(30) + &number.to_string()),
        },
        KeyPart::Uuid => {
            format!("'{:032x}'", u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
        }
        KeyPart::Instant if number == 0 => "'infinity'".to_owned(),
        // A second before the year 1, then on by somewhat more than a year.
        KeyPart::Instant => {
            format!(
                "timestamptz '0001-12-31 23:59:59+00 BC' + {} * interval '1 us'",
                u64::from(number) * 40_000_000_000_007
            )
        }
        KeyPart::Decimal => format!("{}.{:05}", i64::from(number) - 30, number),
        KeyPart::Third => (number % 3).to_string(),
    }
}

fn text(rng: &mut StdRng, length: usize) -> String {
    const LETTERS: [char; 12] = ['a', 'B', ' ', 'é', '€', '😀', '\'', '"', '\\', ',', '{', '\n'];
    (0..rng.random_range(0..=length)).map(|_| LETTERS[rng.random_range(0..LETTERS.len())]).collect()
}

fn finite<T: Copy>(mut next: impl FnMut() -> T, is_finite: impl Fn(T) -> bool) -> T {
    loop {
        let number = next();
        if is_finite(number) {
            return number;
        }
    }
}
