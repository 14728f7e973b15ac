"""What the environment says of places, of the network and of the Hub. Only reads; knows no option and no package."""

import os
from pathlib import Path

PREFIX = "BLOOMERY_"
YES = {"1", "on", "yes", "y", "true", "t"}


def cache_dir() -> Path:
    """Where measurements and fetched models are kept: BLOOMERY_CACHE_DIR, or the user's cache folder."""
    chosen = os.environ.get(PREFIX + "CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bloomery"


def offline() -> str | None:
    """The variable that forbids the network, or None. The last two are those that huggingface_hub obeys."""
    names = (PREFIX + "OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name, "").lower() in YES), None)


def hub_endpoint() -> str:
    """Address of the Hub: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it has downloaded, by its own rules."""
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not chosen:
        user = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        chosen = os.path.join(os.environ.get("HF_HOME") or os.path.join(user, "huggingface"), "hub")
    return Path(os.path.expandvars(os.path.expanduser(chosen)))
