//! HPKE (RFC 9180), base mode, single shot, with ML-KEM-768 and X25519 (X-Wing) or X25519 alone; AES-256-GCM.
//!
//! `sealane.security.suites` is the same in Python, over another library; `tests/contract/sealed` holds the two against
//! each other, and both against vectors and an independent reader.

use std::ptr;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM};
use aws_lc_rs::agreement::{agree, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::digest::{digest, SHA3_256};
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use aws_lc_sys as sys;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::seal::format::{expanded, hmac, Key, KEY_BYTES};

pub const HYBRID: u32 = 1;
pub const EXCHANGE: u32 = 2;
const LATTICE_SEED: usize = 64;
const LATTICE_PUBLIC: usize = 1184;
const LATTICE_CIPHERTEXT: usize = 1088;
const LATTICE_PRIVATE: usize = 2400;
const POINT: usize = 32;
const TAG: usize = 16;
/// Of draft-connolly-cfrg-xwing-kem, section 5.3.
const XWING_LABEL: &[u8] = b"\\.//^\\";
const KDF_AND_AEAD: [u8; 4] = [0, 1, 0, 2];

/// KEM identifier; none for a suite that there is not.
fn kem(suite: u32) -> Option<[u8; 2]> {
    match suite {
        HYBRID => Some([0x64, 0x7a]),
        EXCHANGE => Some([0x00, 0x20]),
        _ => None,
    }
}

/// Encapsulated key and ciphertext of `secret`; None for a key that nothing can be sealed to.
pub fn wrap(suite: u32, public: &[u8], secret: &[u8], info: &[u8]) -> Option<Vec<u8>> {
    let kem = kem(suite)?;
    let own = PrivateKey::generate(&X25519).ok()?;
    let share = own.compute_public_key().ok()?;
    let (mut out, shared) = if suite == HYBRID {
        if public.len() != LATTICE_PUBLIC + POINT {
            return None;
        }
        let (lattice, point) = public.split_at(LATTICE_PUBLIC);
        let (ciphertext, first) = EncapsulationKey::new(&ML_KEM_768, lattice).ok()?.encapsulate().ok()?;
        let second = exchanged(&own, point)?;
        let mut out = ciphertext.as_ref().to_vec();
        out.extend_from_slice(share.as_ref());
        (out, combined(first.as_ref(), &second, share.as_ref(), point))
    } else {
        let shared = derived(kem, &exchanged(&own, public)?, share.as_ref(), public);
        (share.as_ref().to_vec(), shared)
    };
    let (key, nonce) = scheduled(kem, &shared, info);
    let start = out.len();
    out.resize(start + secret.len() + TAG, 0);
    let (ciphertext, tag) = out[start..].split_at_mut(secret.len());
    key.seal_out_of_place_scatter(nonce, Aad::empty(), secret, ciphertext, &[], tag).ok()?;
    Some(out)
}

/// The same for Python; None for a key that nothing can be sealed to.
#[pyfunction(name = "wrap")]
pub fn wrapped<'py>(
    py: Python<'py>,
    suite: u32,
    public_key: &[u8],
    secret: &[u8],
    info: &[u8],
) -> Option<Bound<'py, PyBytes>> {
    let wrapped = py.detach(|| wrap(suite, public_key, secret, info));
    wrapped.map(|wrapped| PyBytes::new(py, &wrapped))
}

/// A sealing key, with its private half.
pub struct Pair {
    pub suite: u32,
    lattice: Option<DecapsulationKey>,
    exchange: PrivateKey,
    point: Vec<u8>,
}

impl Pair {
    /// Args: the suite, and its private key: the seed of the lattice key (FIPS 203: d || z), if there is one, and the
    /// X25519 key.
    pub fn new(suite: u32, private: &[u8]) -> Option<Self> {
        kem(suite)?;
        let seed = if suite == HYBRID { LATTICE_SEED } else { 0 };
        if private.len() != seed + POINT {
            return None;
        }
        let (seed, exchange) = private.split_at(seed);
        let exchange = PrivateKey::from_private_key(&X25519, exchange).ok()?;
        let point = exchange.compute_public_key().ok()?.as_ref().to_vec();
        let lattice = if suite == HYBRID { Some(lattice(seed)?) } else { None };
        Some(Self { suite, lattice, exchange, point })
    }

    /// What [`wrap`] sealed; None for another key, another `info`, or altered bytes.
    pub fn unwrap(&self, wrapped: &[u8], info: &[u8]) -> Option<Vec<u8>> {
        let kem = kem(self.suite)?;
        let encapsulated = if self.lattice.is_some() { LATTICE_CIPHERTEXT + POINT } else { POINT };
        let (encapsulated, sealed) = wrapped.split_at_checked(encapsulated)?;
        let (ciphertext, share) = encapsulated.split_at(encapsulated.len() - POINT);
        let second = exchanged(&self.exchange, share)?;
        let shared = match &self.lattice {
            Some(lattice) => {
                let first = lattice.decapsulate(Ciphertext::from(ciphertext)).ok()?;
                combined(first.as_ref(), &second, share, &self.point)
            }
            None => derived(kem, &second, share, &self.point),
        };
        let (key, nonce) = scheduled(kem, &shared, info);
        let (ciphertext, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG)?)?;
        let mut secret = vec![0; ciphertext.len()];
        key.open_separate_gather(nonce, Aad::empty(), ciphertext, tag, &mut secret).ok()?;
        Some(secret)
    }
}

/// The X25519 secret; None for a share of low order, with which both sides would agree on zeros.
fn exchanged(own: &PrivateKey, other: &[u8]) -> Option<Key> {
    let secret = agree(own, UnparsedPublicKey::new(&X25519, other), (), |secret| Key::try_from(secret).map_err(|_| ()));
    secret.ok().filter(|secret| secret.iter().any(|byte| *byte != 0))
}

/// X-Wing's combiner.
fn combined(first: &[u8], second: &[u8], share: &[u8], point: &[u8]) -> Key {
    let hashed = [first, second, share, point, XWING_LABEL].concat();
    digest(&SHA3_256, &hashed).as_ref().try_into().expect("32 bytes")
}

/// ExtractAndExpand of DHKEM (RFC 9180 section 4.1).
fn derived(kem: [u8; 2], secret: &[u8], share: &[u8], point: &[u8]) -> Key {
    let suite = [&b"KEM"[..], &kem].concat();
    let extracted = extract(&suite, b"eae_prk", secret, b"");
    expand(&suite, &extracted, b"shared_secret", &[share, point].concat(), KEY_BYTES)
}

/// Key and nonce of base mode (RFC 9180 section 5.1).
fn scheduled(kem: [u8; 2], shared: &[u8], info: &[u8]) -> (LessSafeKey, Nonce) {
    let suite = [&b"HPKE"[..], &kem, &KDF_AND_AEAD].concat();
    let mut context = vec![0];
    context.extend(extract(&suite, b"psk_id_hash", b"", b""));
    context.extend(extract(&suite, b"info_hash", info, b""));
    let secret = extract(&suite, b"secret", b"", shared);
    let key = expand(&suite, &secret, b"key", &context, KEY_BYTES);
    let nonce = expand(&suite, &secret, b"base_nonce", &context, 12);
    let key = UnboundKey::new(&AES_256_GCM, &key).expect("a key of 32 bytes");
    (LessSafeKey::new(key), Nonce::try_assume_unique_for_key(&nonce[..12]).expect("12 bytes"))
}

fn extract(suite: &[u8], label: &[u8], material: &[u8], salt: &[u8]) -> Key {
    hmac(salt, &[b"HPKE-v1", suite, label, material])
}

/// At most 32 bytes; of fewer the first ones count.
fn expand(suite: &[u8], secret: &[u8], label: &[u8], info: &[u8], size: usize) -> Key {
    expanded(secret, &[&(size as u16).to_be_bytes(), &b"HPKE-v1"[..], suite, label, info].concat())
}

/// The decapsulation key of a seed.
fn lattice(seed: &[u8]) -> Option<DecapsulationKey> {
    let mut private = vec![0; LATTICE_PRIVATE];
    // SAFETY: each pointer is valid for the length that goes with it, and what is made is freed, on every way out.
    let made = unsafe {
        let context = sys::EVP_PKEY_CTX_new_id(sys::EVP_PKEY_KEM, ptr::null_mut());
        let (mut key, mut length, mut size) = (ptr::null_mut(), seed.len(), private.len());
        let made = !context.is_null()
            && sys::EVP_PKEY_CTX_kem_set_params(context, sys::NID_MLKEM768) == 1
            && sys::EVP_PKEY_keygen_init(context) == 1
            && sys::EVP_PKEY_keygen_deterministic(context, &mut key, seed.as_ptr(), &mut length) == 1
            && sys::EVP_PKEY_get_raw_private_key(key, private.as_mut_ptr(), &mut size) == 1
            && size == private.len();
        sys::EVP_PKEY_free(key);
        sys::EVP_PKEY_CTX_free(context);
        made
    };
    if made {
        DecapsulationKey::new(&ML_KEM_768, &private).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(suite: u32, pair: &Pair, lattice: &[u8]) -> Vec<u8> {
        if suite == HYBRID {
            [lattice, &pair.point].concat()
        } else {
            pair.point.clone()
        }
    }

    #[test]
    fn a_curve_pair_opens_what_was_wrapped_to_it_and_nothing_else() {
        let pair = Pair::new(EXCHANGE, &[9; 32]).unwrap();
        let public = public(EXCHANGE, &pair, &[]);
        let wrapped = wrap(EXCHANGE, &public, b"secret", b"info").unwrap();
        assert_eq!(pair.unwrap(&wrapped, b"info").as_deref(), Some(&b"secret"[..]));
        assert!(pair.unwrap(&wrapped, b"other").is_none());
        for at in 0..wrapped.len() {
            let mut altered = wrapped.clone();
            altered[at] ^= 1;
            assert!(pair.unwrap(&altered, b"info").is_none(), "byte {at}");
            assert!(pair.unwrap(&wrapped[..at], b"info").is_none(), "{at} bytes");
        }
    }

    #[test]
    fn shares_that_agree_on_nothing_are_refused() {
        assert!(wrap(EXCHANGE, &[0; 32], b"secret", b"").is_none());
        assert!(wrap(EXCHANGE, &[1; 31], b"secret", b"").is_none());
        assert!(wrap(HYBRID, &[0; 32], b"secret", b"").is_none());
        assert!(wrap(3, &[9; 32], b"secret", b"").is_none());
        let pair = Pair::new(EXCHANGE, &[9; 32]).unwrap();
        let mut wrapped = wrap(EXCHANGE, &public(EXCHANGE, &pair, &[]), b"secret", b"").unwrap();
        wrapped[..32].fill(0);
        assert!(pair.unwrap(&wrapped, b"").is_none());
    }

    #[test]
    fn keys_of_another_size_are_none() {
        for (suite, size) in [(EXCHANGE, 31), (EXCHANGE, 96), (HYBRID, 32), (HYBRID, 95), (3, 32)] {
            assert!(Pair::new(suite, &vec![1; size]).is_none(), "{suite}, {size}");
        }
        assert!(Pair::new(HYBRID, &[1; 96]).is_some());
    }
}
