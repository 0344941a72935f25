"""The ground floor: standard library only, but for `typed`."""
