//! The test bed: a real Kerberos, Hadoop and Kubernetes on one machine, in namespaces of their own, and nothing of
//! it left when it ends. [`provision`] fetches and builds what is needed, once; [`isolate`] makes the namespaces;
//! [`Bed`] starts the parts in them. End-to-end tests, the demo and the benchmarks are written on it.
//!
//! The bed is no product code: it trusts its own machine, and it stops with a message where a program would recover.

#![allow(clippy::expect_used, clippy::panic)] // a broken bed should say so loudly; tests and demos cannot go on

pub mod audit_log;
mod bed;
mod cgroup;
pub mod fault;
pub mod harness;
pub mod host;
pub mod image;
pub mod isolate;
pub mod kdc;
pub mod kubernetes;
pub mod ldap;
pub mod load;
pub mod matrix;
pub mod namenode;
pub mod operators;
pub mod outage;
pub mod outside;
pub mod pki;
pub mod pod;
pub mod process;
pub mod product;
pub mod progress;
pub mod provision;
pub mod reading;
pub mod reckoning;
pub mod replicas;
pub mod seal;
pub mod second_controller;
pub mod second_node;
pub mod token_service;
pub mod users;
pub mod webhook;

pub use bed::{Bed, Options};
