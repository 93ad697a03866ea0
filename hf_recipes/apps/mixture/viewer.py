"""A page on which the shares of a mixture are set and its policy is written: scripts/mixture_viewer.py serves it."""

import argparse
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import streamlit as st

from hf_recipes.apps.mixture.charts import STYLE, code, dotted, left_cell, left_over, show_figures, show_pies
from hf_recipes.apps.mixture.pasted_sizes import parse_sizes
from hf_recipes.apps.mixture.sizes import Part, Sizes, folder_sizes, parse_size, plan, tempered_shares
from hf_recipes.apps.mixture.texts import LANGUAGES, Texts
from hf_recipes.core.errors import UserError
from hf_recipes.data.pretraining.mixture_policy import Policy

MOST_SOURCES = 200  # a slider each is as much as a browser bears
EXAMPLE = '-rw-r--r-- 1 me me 253K Nov 21 16:18 news.jsonl\nwiki, 1.2G\n{"name": "qa", "size": 3400000}'


def set_defaults(folder: str, language: str) -> None:
    """Give every field its first value, and keep what was put into those that are not on the page just now."""
    defaults = {"kind": "folder" if folder else "paste", "folder": folder, "text": "", "unit": "auto", "budget": ""}
    defaults |= {"language": language or ("zh" if (st.context.locale or "").lower().startswith("zh") else "en")}
    defaults |= {"way": "sliders", "alpha": 1.0, "write as": "write shares", "file": "mixture.json", "overwrite": False}
    for key, value in defaults.items():
        st.session_state[key] = st.session_state.get(key, value)


def choose_language() -> Texts:
    texts = Texts(st.session_state.language)
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"):
        st.title(texts("title"), width="content")
        st.radio(
            "语言 / Language",
            list(LANGUAGES),
            format_func=LANGUAGES.get,
            horizontal=True,
            key="language",
            label_visibility="collapsed",
            width="content",
        )
    st.caption(texts("about"))
    return texts


@st.cache_data(ttl=30, show_spinner=False)
def cached_folder_sizes(path: str) -> Sizes:
    """Not anew for each move of a slider: a corpus can have a million files."""
    return folder_sizes(path)


def read_sources(texts: Texts) -> Sizes | None:
    """The input's part of the page; None as long as there are no sizes."""
    st.subheader(texts("sources"))
    kind = st.radio(
        texts("sources"),
        ["paste", "folder"],
        format_func=texts,
        horizontal=True,
        key="kind",
        label_visibility="collapsed",
    )
    if kind == "folder":
        path = st.text_input(texts("path"), key="folder", help=texts("path help")).strip()
        if not path:
            return None
        try:
            sizes = cached_folder_sizes(path)
        except UserError:
            st.error(texts("unreadable" if Path(path).expanduser().is_dir() else "no folder"))
            return None
    else:
        text = st.text_area(
            texts("names and sizes"), key="text", height=150, placeholder=EXAMPLE, help=texts("paste help")
        )
        units = ["auto", "bytes", "tokens", "documents"]
        unit = st.radio(texts("unit"), units, format_func=texts, horizontal=True, key="unit")
        if not text.strip():
            return None
        sizes = parse_sizes(text, None if unit == "auto" else unit)
    show_remarks(texts, sizes)
    if len(sizes.amounts) > MOST_SOURCES:
        st.error(texts("too many", count=len(sizes.amounts), most=MOST_SOURCES))
        return None
    return sizes if sizes.amounts else None


def show_remarks(texts: Texts, sizes: Sizes) -> None:
    def listed(remarks) -> str:
        where = [texts("line", line=remark.line) + " " if remark.line else "" for remark in remarks]
        return "\n".join(
            f"- {place}{code(remark.text)}: {texts.reason(remark.reason)}"
            for place, remark in zip(where, remarks, strict=True)
        )

    if sizes.problems:
        st.error(f"{texts('not counted')}\n{listed(sizes.problems)}")
    if sizes.notes:
        with st.expander(texts("notes", count=len(sizes.notes))):
            st.markdown(listed(sizes.notes))
    if not sizes.amounts:
        st.info(texts("no sources"))


def keep_shares(amounts: dict[str, float]) -> dict[str, float]:
    """The shares in force: those that were set by hand, or else those that size and temperature give."""
    state = st.session_state
    if state.get("edited") and set(state.shares) & set(amounts):
        state.shares = {name: state.shares.get(name, 0.0) for name in amounts}
    else:
        state.edited, state.shares = False, tempered_shares(amounts, state.alpha)
    return state.shares


def set_share(name: str, key: str) -> None:
    st.session_state.shares[name] = st.session_state[key] / 100
    st.session_state.edited = True


def set_natural() -> None:
    st.session_state.alpha, st.session_state.edited = 1.0, False


def set_tempered() -> None:
    st.session_state.edited = False


def normalise() -> None:
    total = sum(st.session_state.shares.values())
    st.session_state.shares = {name: share / total for name, share in st.session_state.shares.items()}
    st.session_state.edited = True


def set_budget(texts: Texts, sizes: Sizes) -> float:
    total, unit = sum(sizes.amounts.values()), texts(sizes.unit)
    text = st.text_input(
        texts("budget", unit=unit), key="budget", placeholder=texts.amount(total, sizes.unit), help=texts("budget help")
    )
    budget = parse_size(text, sizes.unit) if text.strip() else total
    if not budget:
        st.error(texts("bad budget", unit=unit))
    return budget or total


def edit_shares(texts: Texts, parts: Sequence[Part], unit: str, budget: float) -> None:
    st.subheader(texts("shares"))
    way = st.radio(
        texts("shares"),
        ["sliders", "numbers"],
        format_func=texts,
        horizontal=True,
        key="way",
        label_visibility="collapsed",
    )
    for number, part in enumerate(parts):
        key = f"{way} {part.name}"
        st.session_state[key] = part.share * 100
        settings = {"key": key, "on_change": set_share, "args": (part.name, key), "label_visibility": "collapsed"}
        label = texts("share of", name=code(part.name))
        with st.container(gap=None):
            size = escape(texts.amount(part.size, unit))
            st.html(f'<div class="mix-row mix-{way}"><b>{dotted(number, part.name)}</b><span>{size}</span></div>')
            if way == "sliders":
                st.slider(label, 0.0, max(100.0, part.share * 100), step=0.5, format="%.1f %%", **settings)
            else:
                st.number_input(label, 0.0, step=1.0, format="%.2f", **settings)
    rest = left_over(parts)
    name, value = left_cell(texts, rest, unit, budget)
    mark = ' class="mix-off"' if rest else ""
    st.html(f'<div class="mix-row"><b>{escape(name)}</b><span{mark}>{escape(value)}</span></div>')
    st.slider(texts("alpha"), 0.0, 1.0, step=0.05, key="alpha", on_change=set_tempered, help=texts("alpha help"))
    left, right = st.columns(2)
    left.button(texts("natural"), on_click=set_natural, width="stretch")
    right.button(texts("normalise"), on_click=normalise, width="stretch", disabled=rest in (0, 1))


def eight_digits(value: float) -> float:
    """To be read, and near enough that the shares still sum to one for who reads the file."""
    return float(f"{value:.8g}")


def write_policy(texts: Texts, parts: Sequence[Part], unit: str) -> None:
    st.subheader(texts("policy"))
    rest = left_over(parts)
    if rest == 1:
        st.error(texts("no share"))
        return
    by = st.radio(
        texts("write as"), ["write shares", "write epochs"], format_func=texts, horizontal=True, key="write as"
    )
    if by == "write epochs":
        policy = Policy({part.name: eight_digits(part.epochs) for part in parts}, "epochs")
    else:
        policy = Policy({part.name: eight_digits(part.share) for part in parts}, unit)
        if rest:
            st.info(texts("not one", sum=(1 - rest) * 100))
    st.code(json.dumps(policy.to_dict(), ensure_ascii=False, indent=2), language="json")
    file = st.text_input(texts("file"), key="file").strip()
    tick, button = st.columns([3, 1], vertical_alignment="center")
    overwrite = tick.checkbox(texts("overwrite"), key="overwrite")
    if button.button(texts("save"), type="primary", width="stretch"):
        save(texts, policy, Path(file).expanduser().absolute(), overwrite)


def save(texts: Texts, policy: Policy, path: Path, overwrite: bool) -> None:
    shown = code(str(path))
    if path.is_file() and not overwrite:
        st.error(texts("exists", path=shown))
        return
    try:
        policy.save(path)
    except (OSError, ValueError) as error:
        st.error(texts("not saved", path=shown, reason=getattr(error, "strerror", None) or error))
    else:
        st.success(texts("saved", path=shown))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default="")
    parser.add_argument("--lang", default="")
    arguments = parser.parse_args()
    st.set_page_config(page_title="数据配比 · Mixture", layout="wide")
    st.html(STYLE)
    set_defaults(arguments.folder, arguments.lang)
    texts = choose_language()
    left, right = st.columns([5, 7], gap="large")
    with left:
        sizes = read_sources(texts)
    if not sizes:
        right.info(texts("nothing yet"))
        return
    with left:
        shares = keep_shares(sizes.amounts)
        budget = set_budget(texts, sizes)
        parts = plan(sizes.amounts, shares, budget)
        edit_shares(texts, parts, sizes.unit, budget)
    with right:
        show_pies(texts, parts)
        show_figures(texts, parts, sizes.unit, budget)
        write_policy(texts, parts, sizes.unit)


if __name__ == "__main__":
    main()
