"""The version of this library. Every run records it; CHANGELOG.md lists what each version changed."""

VERSION = "1.6.0"
