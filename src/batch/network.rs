//! `inet`, `cidr` and `macaddr` as the text that a cast gives: `192.168.1.5/24`, and `192.168.1.5/32` where the output
//! function of inet leaves the netmask out.
//!
//! Binary, from `network_send`: uint8 family (2: IPv4, 3: IPv6), uint8 bits of the netmask, uint8 whether it is a
//! cidr, uint8 length of the address, the address. `macaddr_send` writes 6 bytes, `macaddr8_send` 8.

use std::io::Write;

use super::reader::Reader;
use super::value_error::Fault;

const IPV4: u8 = 2;
const IPV6: u8 = 3;

/// The netmask that a cast shows and the output function does not, if the printed text lacks it.
pub(crate) fn missing_netmask(text: &[u8]) -> Option<&'static [u8]> {
    if text.contains(&b'/') {
        None
    } else if text.contains(&b':') {
        Some(b"/128")
    } else {
        Some(b"/32")
    }
}

/// Appends a binary inet or cidr. On failure, `out` may hold a part.
pub(crate) fn inet_from_binary(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut reader = Reader::new(bytes);
    let family = reader.u8()?;
    let netmask = reader.u8()?;
    let _is_cidr = reader.u8()?;
    let _length = reader.u8()?;
    match (family, reader.rest()) {
        (IPV4, [a, b, c, d]) => print(out, format_args!("{a}.{b}.{c}.{d}")),
        (IPV6, address) => match <[u8; 16]>::try_from(address) {
            Ok(address) => ipv6(&address, out),
            Err(_) => return Err(Fault::malformed("an IPv6 address that has not 16 bytes")),
        },
        _ => return Err(Fault::malformed("an address of unknown family or length")),
    }
    print(out, format_args!("/{netmask}"));
    Ok(())
}

/// As Postgres' `inet_net_ntop_ipv6` prints it: the first longest run of two or more zero words as `::`, the last
/// four bytes in decimal where that run says that they are an IPv4 address.
fn ipv6(address: &[u8; 16], out: &mut Vec<u8>) {
    let mut words = [0u16; 8];
    for (word, pair) in words.iter_mut().zip(address.chunks_exact(2)) {
        *word = u16::from_be_bytes([pair[0], pair[1]]);
    }
    let (base, length) = longest_zeros(&words);
    let mut index = 0;
    while index < 8 {
        if length > 0 && index == base {
            out.push(b':');
            index += length;
            continue;
        }
        if index != 0 {
            out.push(b':');
        }
        let holds_ipv4 = length == 6 || (length == 5 && words[5] == 0xffff);
        if index == 6 && base == 0 && holds_ipv4 {
            let [.., a, b, c, d] = address;
            print(out, format_args!("{a}.{b}.{c}.{d}"));
            return;
        }
        print(out, format_args!("{:x}", words[index]));
        index += 1;
    }
    if length > 0 && base + length == 8 {
        out.push(b':');
    }
}

/// Where the first longest run of zero words begins, and its length; length 0 where none is longer than one word.
fn longest_zeros(words: &[u16; 8]) -> (usize, usize) {
    let mut best = (0, 0);
    let mut start = 0;
    for end in 1..=words.len() {
        if words[end - 1] != 0 {
            start = end;
        } else if end - start > best.1 {
            best = (start, end - start);
        }
    }
    if best.1 < 2 { (0, 0) } else { best }
}

/// Appends a binary macaddr or macaddr8. On failure, `out` is as it was.
pub(crate) fn macaddr_from_binary(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    if !matches!(bytes.len(), 6 | 8) {
        return Err(Fault::malformed(format!("a MAC address of {} bytes", bytes.len())));
    }
    for (index, byte) in bytes.iter().enumerate() {
        let separator = if index == 0 { "" } else { ":" };
        print(out, format_args!("{separator}{byte:02x}"));
    }
    Ok(())
}

/// Writing into a vector can't fail.
fn print(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_whole_address_gets_its_netmask() {
        assert_eq!(missing_netmask(b"10.0.0.1"), Some(&b"/32"[..]));
        assert_eq!(missing_netmask(b"10.0.0.0/8"), None);
        assert_eq!(missing_netmask(b"::1"), Some(&b"/128"[..]));
        assert_eq!(missing_netmask(b"fe80::/10"), None);
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for wrong in [&b""[..], &[2, 32, 0, 4, 1, 2, 3], &[3, 128, 0, 4, 1, 2, 3, 4], &[9, 32, 0, 4, 1, 2, 3, 4]] {
            assert!(inet_from_binary(wrong, &mut Vec::new()).is_err());
        }
        assert!(macaddr_from_binary(&[1; 7], &mut Vec::new()).is_err());
    }

    proptest! {
        #[test]
        fn any_address_reads_back(address in any::<[u16; 8]>(), zeros in any::<u8>()) {
            let mut bytes = vec![IPV6, 128, 0, 16];
            for (index, word) in address.iter().enumerate() {
                let word = if zeros >> index & 1 == 1 { 0 } else { *word };
                bytes.extend(word.to_be_bytes());
            }
            let mut out = Vec::new();
            inet_from_binary(&bytes, &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            let parsed: std::net::Ipv6Addr = text.strip_suffix("/128").unwrap().parse().unwrap();
            prop_assert_eq!(&parsed.octets()[..], &bytes[4..]);
        }
    }
}
