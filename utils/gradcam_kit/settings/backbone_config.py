"""The key `backbone_config` of a detector's config: what network the detector is built on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config_values import Section


def backbone_config(config: Mapping[str, Any], where: str = "config") -> Mapping[str, Any]:
    """`config["backbone_config"]`, empty where it is missing. Raises InputError for anything but a mapping."""
    values: Mapping[str, Any] = Section(config, where).get("backbone_config", {})
    return values


def without_pretrained(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` for a detector whose pretrained network is not downloaded: its weights come later, or never."""
    return {**config, "backbone_config": {**backbone_config(config), "pretrained": False}}
