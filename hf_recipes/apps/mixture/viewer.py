"""A page on which the shares of a mixture are set and its policy is written: scripts/mixture_viewer.py serves it."""

import argparse
import json
from pathlib import Path

import pandas as pd
import streamlit as st

from hf_recipes.apps.mixture.pasted_sizes import parse_sizes
from hf_recipes.apps.mixture.sizes import Sizes, folder_sizes, parse_size, tempered_shares
from hf_recipes.apps.mixture.texts import LANGUAGES, Texts
from hf_recipes.core.errors import UserError
from hf_recipes.data.pretraining.mixture_policy import Policy

MOST_EPOCHS = 4  # Muennighoff et al. 2023, arXiv:2305.16264
EXAMPLE = '-rw-r--r-- 1 me me 253K Nov 21 16:18 news.jsonl\nwiki, 1.2G\n{"name": "qa", "size": 3400000}'
state = st.session_state


def code(text: str) -> str:
    """`text` as Markdown that shows it and nothing else: neither HTML nor links nor Streamlit's directives."""
    fence = "`" * (max(map(len, "".join(c if c == "`" else " " for c in text).split()), default=0) + 1)
    return f"{fence} {' '.join(text.split())} {fence}"


def radio(texts: Texts, key: str, options: list[str]) -> str:
    return st.radio(texts(key), options, format_func=texts, horizontal=True, key=key)


@st.cache_data(ttl=30, show_spinner=False)
def cached_folder_sizes(path: str) -> Sizes:
    """Not anew for each edit: a corpus can have a million files."""
    return folder_sizes(path)


def read_sources(texts: Texts) -> Sizes:
    sizes = Sizes()
    if radio(texts, "sources", ["paste", "folder"]) == "folder":
        path = st.text_input(texts("path"), key="folder", help=texts("path help")).strip()
        try:
            sizes = cached_folder_sizes(path) if path else sizes
        except UserError:
            st.error(texts("unreadable" if Path(path).expanduser().is_dir() else "no folder"))
    else:
        text = st.text_area(
            texts("names and sizes"), key="text", height=150, placeholder=EXAMPLE, help=texts("paste help")
        )
        unit = radio(texts, "unit", ["auto", "bytes", "tokens", "documents"])
        sizes = parse_sizes(text, None if unit == "auto" else unit)
    if sizes.remarks:
        st.warning(texts("remarks"))
        rows = [(line, text, texts(reason)) for line, text, reason in sizes.remarks]
        st.dataframe(pd.DataFrame(rows, columns=[texts("line"), texts("item"), texts("reason")]), hide_index=True)
    return sizes


def begin_anew(shares: pd.Series | None) -> None:
    """Let the editor begin with `shares`; None: with those that size and temperature give."""
    state.shares, state.edited, state.version = shares, None, state.version + 1


def set_natural() -> None:
    state.alpha = 1.0
    begin_anew(None)


def edit_shares(texts: Texts, sizes: pd.Series) -> pd.Series:
    """The shares in force: those that the editor began with, or what they were edited to."""
    shown = texts.language, sizes.to_dict()
    if state.shown != shown:  # an editor of another table is a new one, without the edits
        kept = state.shares if state.edited is None else state.edited
        kept = None if kept is None else kept.reindex(sizes.index)
        begin_anew(None if kept is None or kept.isna().all() else kept.fillna(0))
        state.shown = shown
    st.slider(
        texts("alpha"), 0.0, 1.0, step=0.05, key="alpha", help=texts("alpha help"), on_change=begin_anew, args=[None]
    )
    shares = tempered_shares(sizes, state.alpha) if state.shares is None else state.shares
    config = {"_index": texts("source"), "size": st.column_config.NumberColumn(texts("size"), format="localized")}
    config |= {"share": st.column_config.NumberColumn(texts("share %"), min_value=0, format="%.2f", required=True)}
    table = pd.DataFrame({"size": sizes, "share": 100 * shares})
    edited = st.data_editor(
        table, column_config=config, disabled=["_index", "size"], width="stretch", key=f"shares {state.version}"
    )
    if not edited.equals(table):
        shares = state.edited = edited["share"].fillna(0) / 100
    total = shares.sum()
    left, right = st.columns(2)
    left.button(texts("natural"), on_click=set_natural, width="stretch")
    right.button(texts("normalise"), on_click=begin_anew, args=[shares / total], disabled=not total, width="stretch")
    return shares


def choose_budget(texts: Texts, total: float, unit: str) -> float:
    help_text, placeholder = texts("budget help"), f"{total:,.0f}"
    text = st.text_input(texts("budget", unit=texts(unit)), key="budget", placeholder=placeholder, help=help_text)
    budget = parse_size(text, unit) if text.strip() else total
    if not budget:
        st.error(texts("bad budget", unit=texts(unit)))
    return budget or total


def show_plan(texts: Texts, sizes: pd.Series, shares: pd.Series, budget: float, unit: str) -> None:
    """What the shares of `budget` (in the unit of the sizes) come to."""
    natural = sizes / sizes.sum()
    st.bar_chart(
        pd.DataFrame({texts("before"): 100 * natural, texts("after"): 100 * shares}),
        horizontal=True,
        stack=False,
        sort=False,
        x_label="",
        y_label=texts("share %"),
    )
    rest = 1 - shares.sum()
    st.metric(texts("left" if rest > -1e-9 else "over"), f"{abs(rest):.2%}")
    sampled = shares * budget
    table = pd.DataFrame(
        {"size": sizes, "natural share": natural, "share": shares, "sampled": sampled, "epochs": sampled / sizes}
    )
    written = "bytes" if unit == "bytes" else "compact"
    formats = {"size": written, "natural share": "percent", "share": "percent", "sampled": written, "epochs": "%.3g"}
    config = {key: st.column_config.NumberColumn(texts(key), format=format) for key, format in formats.items()}
    repeated = table.index[table["epochs"] > MOST_EPOCHS * (1 + 1e-9)]
    if len(repeated):
        st.warning(texts("repeated", names=", ".join(map(code, repeated))))
    st.dataframe(table, column_config={"_index": texts("source"), **config})


def eight_digits(values: pd.Series) -> dict[str, float]:
    """To be read, and near enough that the shares still sum to one for who reads the file."""
    return {name: float(f"{value:.8g}") for name, value in values.items()}


def write_policy(texts: Texts, shares: pd.Series, epochs: pd.Series, unit: str) -> None:
    st.subheader(texts("policy"))
    total = shares.sum()
    if not total:
        st.error(texts("no share"))
        return
    if radio(texts, "write as", ["share", "epochs"]) == "epochs":
        policy = Policy(eight_digits(epochs), "epochs")
    else:
        policy = Policy(eight_digits(shares), unit)
        if abs(total - 1) > 1e-9:
            st.info(texts("not one", sum=100 * total))
    st.code(json.dumps(policy.to_dict(), ensure_ascii=False, indent=2), language="json")
    path = Path(st.text_input(texts("file"), key="file").strip()).expanduser().absolute()
    overwrite = st.checkbox(texts("overwrite"), key="overwrite")
    if not st.button(texts("save"), type="primary"):
        return
    if path.is_file() and not overwrite:
        st.error(texts("exists", path=code(str(path))))
        return
    try:
        policy.save(path)
        st.success(texts("saved", path=code(str(path))))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        st.error(texts("not saved", path=code(str(path)), reason=reason))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default="")
    parser.add_argument("--lang", default="zh" if (st.context.locale or "").lower().startswith("zh") else "en")
    arguments = parser.parse_args()
    st.set_page_config(page_title="数据配比 · Mixture", layout="wide")
    defaults = {"language": arguments.lang, "folder": arguments.folder, "text": "", "unit": "auto", "budget": ""}
    defaults |= {"sources": "folder" if arguments.folder else "paste", "alpha": 1.0, "write as": "share"}
    defaults |= {"file": "mixture.json", "overwrite": False}
    defaults |= {"shares": None, "edited": None, "version": 0, "shown": None}
    for key, value in defaults.items():
        state[key] = state.get(key, value)  # set anew, a field that is not on the page just now keeps its value
    texts = Texts(state.language)
    st.title(texts("title"))
    st.radio("语言 / Language", list(LANGUAGES), format_func=LANGUAGES.get, horizontal=True, key="language")
    st.caption(texts("about"))
    left, right = st.columns([5, 7], gap="large")
    with left:
        found = read_sources(texts)
        if not found.amounts:
            st.info(texts("no sources"))
            return
        sizes = pd.Series(found.amounts, dtype=float)
        budget = choose_budget(texts, sizes.sum(), found.unit)
        shares = edit_shares(texts, sizes)
    with right:
        show_plan(texts, sizes, shares, budget, found.unit)
        write_policy(texts, shares, shares * budget / sizes, found.unit)


if __name__ == "__main__":
    main()
