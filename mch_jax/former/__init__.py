"""Names of public modules before they moved into packages.

The folder is on the path of `mch_jax`, so that `mch_jax.codes_file` still is the module
`mch_jax.files.codes_file`. New code uses the new names.
"""
