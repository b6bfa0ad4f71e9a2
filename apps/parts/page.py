"""Messages, links and the run in view: what every page of the explorer does alike."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import streamlit as st

from analysis.escapes import markdown as escape
from apps.parts import access
from kernels.errors import MidusError, RunError

LONGEST = 60  # characters of a link that a message repeats


class MissingTable(RunError):
    """A table that this kind of run does not make; nothing is wrong with the run."""


# ---------------------------------------------------------------- messages


@contextlib.contextmanager
def messages(what: str) -> Iterator[None]:
    """Anything that goes wrong inside becomes one message on the page; the rest goes on."""
    try:
        yield
    except MissingTable as error:
        st.info(sentence(error), icon=":material/info:")
    except MidusError as error:
        st.error(sentence(error), icon=":material/error:")
    except MemoryError:
        st.error(f"{what} does not fit into this machine's memory.", icon=":material/error:")
    except Exception as error:
        logging.getLogger(__name__).exception("%s could not be shown", what)
        st.error(
            escape(
                f"{what} could not be shown ({type(error).__name__}: {error}). The run folder may "
                "be damaged or of another version: make the run again or choose another one."
            ),
            icon=":material/error:",
        )


def sentence(error: Exception) -> str:
    """An error's line as a sentence."""
    text = str(error).rstrip(".")
    return escape(f"{text[:1].upper()}{text[1:]}.")


def computed(text: str) -> None:
    """The explanation under a figure, folded away."""
    with st.expander("How is this computed"):
        st.markdown(text)


# ---------------------------------------------------------------- links


def linked(key: str, options: Sequence[str], what: str, fallback: int = 0) -> Callable[[], None]:
    """Say so where the page's address asks for a `key` that is none of the options.

    To be called before the widget that is bound to `key`: Streamlit drops such a value silently.
    The message stays until the user chooses; returns what the widget is to call then.
    """
    lost = f"lost_{key}_{what}"
    asked = st.query_params.get(key)
    if asked is not None and asked not in options and key not in st.session_state:
        st.session_state[lost] = asked
    now = st.session_state.get(key)
    if now in options and now != options[fallback]:  # chosen since
        st.session_state.pop(lost, None)
    if lost in st.session_state:
        shown = options[fallback] if options else "nothing"
        st.warning(
            f"The link asks for {what} {escape(st.session_state[lost][:LONGEST])}, which is not "
            f"there; "
            f"this page shows {escape(shown)} instead. Choose another one below.",
            icon=":material/link_off:",
        )
    return lambda: st.session_state.pop(lost, None)


def choose(
    label: str,
    options: Sequence[str],
    key: str,
    *,
    place: Any = st,
    default: int = 0,
    help: str | None = None,
    what: str | None = None,
) -> str:
    """A choice that the page's address keeps; options are texts, as the address shows them."""
    chosen = linked(key, options, what or label.lower(), default)
    if st.session_state.get(key) not in options:
        st.session_state.pop(key, None)
    return str(
        place.selectbox(
            label, options, index=default, key=key, bind="query-params", help=help, on_change=chosen
        )
    )


def toggle(label: str, options: Sequence[str], key: str, *, place: Any = st) -> str:
    """One of a few options side by side, kept in the page's address."""
    chosen = linked(key, options, label.lower())
    if st.session_state.get(key) not in options:
        st.session_state.pop(key, None)
    found = place.segmented_control(
        label, options, default=options[0], key=key, bind="query-params", required=True,
        on_change=chosen,
    )  # fmt: skip
    return str(options[0] if found is None else found)  # None of an address that names nothing


def bound(
    key: str, what: str, limits: tuple[float, float], shown: float, whole: bool = True
) -> Literal["query-params"] | None:
    """What a number's widget takes as `bind`, so that the page's address keeps it.

    Where the address asks for what is no such number, None, and a message until another one than
    `shown` is chosen: Streamlit would drop it silently, or fail on it.
    """
    asked = st.query_params.get_all(key)
    if not asked or (len(asked) == 1 and _number(asked[0], limits, whole)):
        return "query-params"
    if st.session_state.get(key) in (None, shown):
        text = ", ".join(asked)
        text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
        st.warning(
            f"The link asks for {what} {escape(text)}, which is none of {limits[0]:g} to "
            f"{limits[1]:g}; this page shows {shown:g} instead. Choose another one below.",
            icon=":material/link_off:",
        )
    return None


def _number(text: str, limits: tuple[float, float], whole: bool) -> bool:
    form = r"-?[0-9]{1,15}" if whole else r"-?[0-9]{1,15}(\.[0-9]{1,15})?"
    return bool(re.fullmatch(form, text)) and limits[0] <= float(text) <= limits[1]


# ---------------------------------------------------------------- the run in view


def model_of(run: access.Run, *sides: str) -> str | None:
    """The run's model of the first side that it names, as it may be loaded.

    None, with a message on the page, where there is none or it was not given to the explorer.
    """
    for side in sides:
        try:
            name = run.model(side)
        except MidusError as error:
            st.info(sentence(error), icon=":material/info:")
            return None
        if name is not None:
            return name
    st.info("This run names no model, so nothing can be run here.", icon=":material/info:")
    return None


def run() -> access.Run:
    """The run chosen in the sidebar."""
    chosen: access.Run = st.session_state["run"]
    return chosen
