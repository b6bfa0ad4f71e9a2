"""Where models run, and in what precision: for the pages, and for the jobs that a form starts."""

from __future__ import annotations

from typing import Any

import streamlit as st

# Named, not looked up: looking would import torch before the first page is drawn. What is not
# there is refused in a line when a model is loaded.
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def ask(left: Any, right: Any, key: str) -> tuple[str, str]:
    """Two choices, device and precision, in two places of a page."""
    device = left.selectbox(
        "Device", DEVICES, key=f"{key}_device", accept_new_options=True,
        help="auto takes an accelerator where there is one; cuda:1 can be typed in.",
    )  # fmt: skip
    dtype = right.selectbox(
        "Precision", DTYPES, key=f"{key}_dtype", help="auto: as the model is stored."
    )
    return str(device), str(dtype)


def show() -> None:
    """In the sidebar: where the pages' own models run."""
    with st.expander("Where pages run models"):
        ask(st, st, "pages")


def chosen() -> tuple[str, str]:
    """What the sidebar says."""
    device, dtype = (
        st.session_state.get(f"pages_{name}") or "auto" for name in ("device", "dtype")
    )
    return str(device), str(dtype)


def words(device: str, dtype: str) -> list[str]:
    """The same for the command line; nothing where all is automatic."""
    return [
        word
        for option, value in (("--device", device), ("--dtype", dtype))
        if value != "auto"
        for word in (option, value)
    ]
