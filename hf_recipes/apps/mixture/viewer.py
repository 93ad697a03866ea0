"""A page to edit the shares of a mixture and to write its policy: scripts/mixture_viewer.py serves it."""

import argparse
import json
from pathlib import Path

import pandas as pd
import streamlit as st

from hf_recipes.apps.mixture.pasted_sizes import parse_sizes
from hf_recipes.apps.mixture.sizes import REASONS, Sizes, folder_sizes, parse_size, tempered_shares
from hf_recipes.core.errors import UserError
from hf_recipes.data.pretraining.mixture_policy import Policy

MAX_EPOCHS = 4  # Muennighoff et al. 2023, arXiv:2305.16264
EXAMPLE = '-rw-r--r-- 1 me me 253K Nov 21 16:18 news.jsonl\nwiki, 1.2G\n{"name": "qa", "size": 3400000}'
state = st.session_state
cached_folder_sizes = st.cache_data(ttl=30, show_spinner=False)(folder_sizes)  # a corpus can have a million files


def t(english: str, chinese: str) -> str:
    """The text in the language of the page."""
    return chinese if state.language == "zh" else english


def code(text: str) -> str:
    """`text` as Markdown that shows it literally: neither HTML nor links nor Streamlit's directives."""
    fence = "`" * (max(map(len, "".join(c if c == "`" else " " for c in text).split()), default=0) + 1)
    return f"{fence} {' '.join(text.split())} {fence}"


def radio(label: str, key: str, **options: str) -> str:
    return st.radio(label, list(options), format_func=options.get, horizontal=True, key=key)


def read_sources() -> Sizes:
    sizes = Sizes()
    if radio(t("Sources", "来源"), "sources", paste=t("Paste", "粘贴"), folder=t("Folder", "文件夹")) == "folder":
        help_text = t(
            "each sub-folder is a source, and each loose data file",
            "每个子文件夹是一个来源，每个单独的数据文件也是一个来源",
        )
        path = st.text_input(t("Path of the folder", "文件夹路径"), key="folder", help=help_text).strip()
        try:
            sizes = cached_folder_sizes(path) if path else sizes
        except UserError:
            is_there = Path(path).expanduser().is_dir()
            unreadable = t("The folder cannot be read.", "这个文件夹无法读取。")
            st.error(unreadable if is_there else t("There is no such folder.", "没有这个文件夹。"))
    else:
        help_text = t(
            "JSON, csv, lines of ls -l or du, or a name and a size a line; then Ctrl+Enter",
            "JSON、csv、ls -l 或 du 的输出，或每行一个名称和大小；按 Ctrl+Enter 确认",
        )
        label = t("Names and sizes", "名称与大小")
        text = st.text_area(label, key="text", height=150, placeholder=EXAMPLE, help=help_text)
        unit = radio(t("Unit of the sizes", "大小的单位"), "unit", auto=t("as in the text", "按内容判断"), **units())
        sizes = parse_sizes(text, None if unit == "auto" else unit)
    if sizes.warnings:
        st.warning(t("Not counted, or not as it stands:", "未计入，或处理方式有变："))
        rows = [(line, text, t(*REASONS[reason])) for line, text, reason in sizes.warnings]
        columns = [t("Line", "行"), t("Text", "内容"), t("Reason", "原因")]
        st.dataframe(pd.DataFrame(rows, columns=columns), hide_index=True)
    return sizes


def units() -> dict[str, str]:
    return {"bytes": t("bytes", "字节"), "tokens": t("tokens", "词元"), "documents": t("documents", "文档")}


def reset_editor(shares: pd.Series | None) -> None:
    """Fill the editor with `shares`; None: with those by size and temperature."""
    state.shares, state.edited, state.version = shares, None, state.version + 1


def set_natural() -> None:
    state.alpha = 1.0
    reset_editor(None)


def edit_shares(sizes: pd.Series) -> pd.Series:
    """The shares as the editor shows them, edited or not."""
    shown = state.language, sizes.to_dict()
    if state.shown != shown:  # an editor of another table loses its edits
        kept = state.shares if state.edited is None else state.edited
        kept = None if kept is None else kept.reindex(sizes.index)
        reset_editor(None if kept is None or kept.isna().all() else kept.fillna(0))
        state.shown = shown
    label = t("Temperature: share in proportion to size to the power of α", "温度采样：占比正比于大小的 α 次方")
    help_text = t(
        "1: in proportion to size; 0: all alike. Moving it resets all shares.",
        "1：按原有大小；0：各来源相同。拖动后所有占比重新计算。",
    )
    st.slider(label, 0.0, 1.0, step=0.05, key="alpha", help=help_text, on_change=reset_editor, args=[None])
    shares = tempered_shares(sizes, state.alpha) if state.shares is None else state.shares
    number = st.column_config.NumberColumn
    config = {
        "_index": t("Source", "来源"),
        "size": number(t("Size", "大小"), format="localized", disabled=True),
        "share": number(t("Share in %", "占比（%）"), min_value=0, format="%.2f", required=True),
    }
    table = pd.DataFrame({"size": sizes, "share": 100 * shares})
    key = f"shares {state.version}"
    edited = st.data_editor(table, column_config=config, disabled=["_index"], width="stretch", key=key)
    if not edited.equals(table):
        shares = state.edited = edited["share"].fillna(0) / 100
    total = shares.sum()
    left, right = st.columns(2)
    left.button(t("In proportion to size", "恢复原比例"), on_click=set_natural, width="stretch")
    normalise = {"on_click": reset_editor, "args": [shares / total], "disabled": not total}
    right.button(t("Normalise to 100 %", "归一到 100 %"), width="stretch", **normalise)
    return shares


def choose_budget(total: float, unit: str) -> float:
    label = t("To train on, in {}", "训练总量（{}）").format(units()[unit])
    help_text = t(
        "such as 1.2G, 300M or 3亿; empty: the total of all sizes", "例如 1.2G、300M 或 3亿；留空：所有大小之和"
    )
    text = st.text_input(label, key="budget", placeholder=f"{total:,.0f}", help=help_text)
    budget = parse_size(text, unit) if text.strip() else total
    if not budget:
        error = t("This is no size in {}; the total is used.", "这不是以{}计的大小，按所有大小之和计算。")
        st.error(error.format(units()[unit]))
    return budget or total


def show_plan(sizes: pd.Series, shares: pd.Series, budget: float, unit: str) -> None:
    """Bars and a table of what `shares` of `budget` (in the unit of the sizes) come to."""
    natural = sizes / sizes.sum()
    before, after = t("Before: by size", "调整前：按大小"), t("After: by share", "调整后：按占比")
    bars = pd.DataFrame({before: 100 * natural, after: 100 * shares})
    st.bar_chart(bars, horizontal=True, stack=False, sort=False, x_label="", y_label=t("Share in %", "占比（%）"))
    rest = 1 - shares.sum()
    label = t("Left to assign", "尚可分配") if rest > -1e-9 else t("Assigned beyond 100 %", "超出 100 %")
    st.metric(label, f"{abs(rest):.2%}")
    sampled = shares * budget
    epochs = sampled / sizes
    repeated = sizes.index[epochs > MAX_EPOCHS * (1 + 1e-9)]
    if len(repeated):
        warning = t(
            "Repeated more than 4 times: {}. Up to about 4 epochs repeated data is worth nearly as much as new; "
            "beyond, less and less ([Muennighoff et al. 2023](https://arxiv.org/abs/2305.16264)).",
            "重复超过 4 遍：{}。约 4 遍以内，重复数据几乎和新数据一样有用，再多则收益递减"
            "（[Muennighoff et al. 2023](https://arxiv.org/abs/2305.16264)）。",
        )
        st.warning(warning.format(", ".join(map(code, repeated))))
    size_format = "bytes" if unit == "bytes" else "compact"
    columns = [
        (t("Size", "大小"), sizes, size_format),
        (t("Of all", "原占比"), natural, "percent"),
        (t("Share", "占比"), shares, "percent"),
        (t("Sampled", "采样量"), sampled, size_format),
        (t("Epochs", "遍数"), epochs, "%.3g"),
    ]
    config = {name: st.column_config.NumberColumn(format=format) for name, _, format in columns}
    table = pd.DataFrame({name: values for name, values, _ in columns})
    st.dataframe(table, column_config={"_index": t("Source", "来源"), **config})


def write_policy(shares: pd.Series, epochs: pd.Series, unit: str) -> None:
    st.subheader(t("Policy", "配比文件"))
    total = shares.sum()
    if not total:
        st.error(t("All shares are 0: there is nothing to train on.", "所有占比都是 0，没有可训练的数据。"))
        return
    by = radio(t("Write", "写成"), "write as", share=t("Share", "占比"), epochs=t("Epochs", "遍数"))
    # Eight digits are readable, and the shares still sum to one for `read_policy`.
    values = {name: float(f"{value:.8g}") for name, value in (epochs if by == "epochs" else shares).items()}
    policy = Policy(values, "epochs" if by == "epochs" else unit)
    if by == "share" and abs(total - 1) > 1e-9:
        info = t(
            "The shares sum to {:.4g} %. pretrain.py normalises them and says so; the figures here are of the "
            "shares as they are.",
            "占比之和为 {:.4g} %。pretrain.py 会归一化并提示；这里的数字按当前占比计算。",
        )
        st.info(info.format(100 * total))
    st.code(json.dumps(policy.to_dict(), ensure_ascii=False, indent=2), language="json")
    path = Path(st.text_input(t("File", "文件名"), key="file").strip()).expanduser().absolute()
    overwrite = st.checkbox(t("Overwrite an existing file", "若已存在则覆盖"), key="overwrite")
    if not st.button(t("Save", "保存"), type="primary"):
        return
    if path.is_file() and not overwrite:
        exists = t("{} is there already; tick the box to overwrite it.", "{} 已存在；勾选覆盖，或换一个文件名。")
        st.error(exists.format(code(str(path))))
        return
    try:
        policy.save(path)
        st.success(t("Saved: {}", "已保存：{}").format(code(str(path))))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        st.error(t("{} cannot be written ({}).", "{} 无法写入（{}）。").format(code(str(path)), reason))


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
        state[key] = state.get(key, value)  # set anew, a field that is not on the page now keeps its value
    st.title(t("Mixture of sources", "数据配比"))
    radio("语言 / Language", "language", zh="中文", en="English")
    about = "How much of each source to train on. The policy is for `scripts/pretrain.py --mixture`."
    st.caption(t(about, "每个来源训练多少。得到的配比文件交给 `scripts/pretrain.py --mixture`。"))
    left, right = st.columns([5, 7], gap="large")
    with left:
        sources = read_sources()
        if not sources.amounts:
            st.info(t("Paste names and sizes, or name a folder.", "请粘贴名称与大小，或填写文件夹。"))
            return
        sizes = pd.Series(sources.amounts, dtype=float)
        budget = choose_budget(sizes.sum(), sources.unit)
        shares = edit_shares(sizes)
    with right:
        show_plan(sizes, shares, budget, sources.unit)
        write_policy(shares, shares * budget / sizes, sources.unit)


if __name__ == "__main__":
    main()
