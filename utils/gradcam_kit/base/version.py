"""The version of this library, which every run writes down. CHANGELOG.md says what each one changed."""

VERSION = "1.4.0"
