//! The one call that the safe binding lacks: credentials from a keytab of our choice into a cache of our choice, both
//! named by argument and not by environment variables. The only `unsafe` code of the crate.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::ptr;

use libgssapi::credential::Cred;
use libgssapi::error::{Error, MajorFlags};
use libgssapi::oid::{GSS_MECH_KRB5, GSS_NT_KRB5_PRINCIPAL, Oid};
use libgssapi_sys as sys;

/// Logs in with the keytab, or reuses the tickets in the cache when they are still good. Blocks on the network.
pub(super) fn acquire(principal: &str, keytab: &CStr, cache: &CStr) -> Result<Cred, Error> {
    let mut name_type = descriptor(&GSS_NT_KRB5_PRINCIPAL)?;
    let mut mechanism = descriptor(&GSS_MECH_KRB5)?;
    let mut mechanisms = sys::gss_OID_set_desc { count: 1, elements: &raw mut mechanism };
    let mut elements = [
        sys::gss_key_value_element_desc { key: c"client_keytab".as_ptr(), value: keytab.as_ptr() },
        sys::gss_key_value_element_desc { key: c"ccache".as_ptr(), value: cache.as_ptr() },
    ];
    let store = sys::gss_key_value_set_desc { count: 2, elements: elements.as_mut_ptr() };
    let mut text = sys::gss_buffer_desc {
        length: principal.len(),
        value: principal.as_ptr().cast_mut().cast::<c_void>(),
    };
    let usage =
        sys::gss_cred_usage_t::try_from(sys::GSS_C_INITIATE).map_err(|_| failure(sys::_GSS_S_FAILURE, 0))?;

    let (mut minor, mut name) = (0, ptr::null_mut());
    // SAFETY: `text` and `name_type` point at memory that lives and stays put during the call, which reads it only;
    // `minor` and `name` are written.
    let major =
        unsafe { sys::gss_import_name(&raw mut minor, &raw mut text, &raw mut name_type, &raw mut name) };
    if major != sys::GSS_S_COMPLETE {
        return Err(failure(major, minor));
    }

    let mut credential = ptr::null_mut();
    // SAFETY: `name` was made by the call above. `mechanisms` points at `mechanism`, whose bytes are static; `store`
    // points at `elements`, whose texts end in zero and outlive the call. The library copies what it keeps. The last
    // two results may be null: not wanted.
    let major = unsafe {
        sys::gss_acquire_cred_from(
            &raw mut minor,
            name,
            sys::_GSS_C_INDEFINITE,
            &raw mut mechanisms,
            usage,
            &raw const store,
            &raw mut credential,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    let mut ignored = 0;
    // SAFETY: `name` is ours, is released once, and is not used again.
    unsafe { sys::gss_release_name(&raw mut ignored, &raw mut name) };
    if major != sys::GSS_S_COMPLETE {
        return Err(failure(major, minor));
    }
    // SAFETY: a complete call made a credential that is ours alone; the wrapper releases it.
    Ok(unsafe { Cred::from_c(credential) })
}

/// The C form of an object identifier, whose bytes are static.
fn descriptor(oid: &'static Oid<'static>) -> Result<sys::gss_OID_desc, Error> {
    let bytes: &'static [u8] = oid;
    let length = u32::try_from(bytes.len()).map_err(|_| failure(sys::_GSS_S_FAILURE, 0))?;
    Ok(sys::gss_OID_desc { length, elements: bytes.as_ptr().cast_mut().cast::<c_void>() })
}

fn failure(major: u32, minor: u32) -> Error {
    Error { major: MajorFlags::from_bits_retain(major), minor }
}
