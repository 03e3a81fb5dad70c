"""The operators, by what they compute. Import them from :mod:`dialects.operators`."""
