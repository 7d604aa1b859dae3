//! Nothing of a bed is left.
