"""What the mixture viewer says, in English and in Chinese."""

LANGUAGES = {"zh": "中文", "en": "English"}

# Key: (English, Chinese). `format` fills the braces.
_TEXTS = {
    "title": ("Mixture of sources", "数据配比"),
    "about": (
        "How much of each source a model learns from. The policy is what `scripts/pretrain.py --mixture` takes.",
        "模型从每个来源学多少。得到的配比文件交给 `scripts/pretrain.py --mixture`。",
    ),
    "sources": ("Sources", "来源"),
    "paste": ("Paste", "粘贴"),
    "folder": ("Folder", "文件夹"),
    "names and sizes": ("Names and sizes", "名称与大小"),
    "paste help": (
        "json, csv, lines of ls -l or du, or a name and a size a line; then Ctrl+Enter",
        "json、csv、ls -l 或 du 的输出，或每行一个名称和大小；按 Ctrl+Enter 确认",
    ),
    "path": ("Path of the folder", "文件夹路径"),
    "path help": (
        "each sub-folder is a source, and each loose data file",
        "每个子文件夹是一个来源，每个单独的数据文件也是一个来源",
    ),
    "no folder": ("There is no such folder.", "没有这个文件夹。"),
    "unreadable": ("The folder cannot be read.", "这个文件夹无法读取。"),
    "no sources": ("Paste names and sizes, or name a folder.", "请粘贴名称与大小，或填写文件夹。"),
    "unit": ("Sizes in", "大小的单位"),
    "auto": ("as they say", "按内容判断"),
    "bytes": ("bytes", "字节"),
    "tokens": ("tokens", "词元"),
    "documents": ("documents", "文档"),
    "remarks": ("Not counted, or not as it stands:", "未计入，或处理方式有变："),
    "line": ("Line", "行"),
    "item": ("What", "内容"),
    "reason": ("Why", "原因"),
    "budget": ("To train on, in {unit}", "训练总量（{unit}）"),
    "budget help": (
        "such as 1.2G, 300M or 3亿; empty: the total of all sizes",
        "例如 1.2G、300M 或 3亿；留空：所有大小之和",
    ),
    "bad budget": (
        "This is no size in {unit}; the total of all sizes is taken.",
        "这不是以{unit}计的大小，按所有大小之和计算。",
    ),
    "alpha": ("Temperature: share in proportion to size to the power of α", "温度采样：占比正比于大小的 α 次方"),
    "alpha help": (
        "1: as large as they are; 0: all alike. Moving it sets all shares anew.",
        "1：按原有大小；0：各来源相同。拖动后所有占比重新计算。",
    ),
    "natural": ("As they are", "恢复原比例"),
    "normalise": ("Normalise to 100 %", "归一到 100 %"),
    "left": ("Left to give out", "尚可分配"),
    "over": ("Given out beyond 100 %", "超出 100 %"),
    "not one": (
        "The shares sum to {sum:.4g} %. pretrain.py normalises them, and says so; the figures here are those of the "
        "shares as they are.",
        "占比之和为 {sum:.4g} %。pretrain.py 会归一化并提示；这里的数字按当前占比计算。",
    ),
    "no share": ("All shares are 0: there is nothing to learn from.", "所有占比都是 0，没有可以学习的内容。"),
    "repeated": (
        "Repeated more than 4 times: {names}. Up to about 4 epochs repeated data is worth nearly as much as new; "
        "beyond, less and less ([Muennighoff et al. 2023](https://arxiv.org/abs/2305.16264)).",
        "重复超过 4 遍：{names}。约 4 遍以内，重复数据几乎和新数据一样有用，再多则收益递减"
        "（[Muennighoff et al. 2023](https://arxiv.org/abs/2305.16264)）。",
    ),
    "before": ("Before: by size", "调整前：按大小"),
    "after": ("After: by share", "调整后：按占比"),
    "source": ("Source", "来源"),
    "size": ("Size", "大小"),
    "natural share": ("Of all", "原占比"),
    "share %": ("Share in %", "占比（%）"),
    "share": ("Share", "占比"),
    "sampled": ("Sampled", "采样量"),
    "epochs": ("Epochs", "遍数"),
    "policy": ("Policy", "配比文件"),
    "write as": ("Write", "写成"),
    "file": ("File", "文件名"),
    "overwrite": ("Overwrite it if it is there", "若已存在则覆盖"),
    "save": ("Save", "保存"),
    "saved": ("Saved: {path}", "已保存：{path}"),
    "exists": (
        "{path} is there already; tick the box to overwrite it, or choose another name.",
        "{path} 已存在；勾选覆盖，或换一个文件名。",
    ),
    "not saved": ("{path} cannot be written ({reason}).", "{path} 无法写入（{reason}）。"),
}

# Why lines, items and files are not counted, or not as they stand: the reasons of `sizes.Sizes.remarks`.
REASONS = {
    "no size": ("no name and size to be found", "找不到名称和大小"),
    "no name": ("no name", "没有名称"),
    "empty": ("its size is 0", "大小为 0"),
    "two readings": (
        "which of the numbers is the size? Put a comma between name and size",
        "哪个数字是大小？请用逗号隔开名称和大小",
    ),
    "columns": ("more columns than a name and a size; add a header, or quotes", "多于名称和大小两列；请加表头或引号"),
    "no file": (
        "no file: ls does not say how much a folder or link holds; its files do, and du -sh",
        "不是文件：ls 不显示文件夹或链接里有多少内容；请列出其中的文件，或用 du -sh",
    ),
    "another unit": ("a size in another unit than the others", "单位与其他大小不同"),
    "billions": ("bytes, or billions? Choose the unit above", "B 是字节还是十亿？请在上面选择单位"),
    "broken json": ("broken JSON", "JSON 有误"),
    "sum": ("a sum of others, left out", "是其他各项之和，未计入"),
    "inside": ("part of another line, left out", "已包含在另一行中，未计入"),
    "added": ("added to the source of the same name", "已加到同名来源上"),
    "KiB": ("numbers from du without a unit are taken as KiB", "du 的数字没有单位，按 KiB 计"),
    "compressed": ("compressed: its size is not that of its text", "压缩文件：大小不等于文本的大小"),
    "bytes of shards": (
        "has tokens, but others have not; its bytes are taken",
        "有词元数，但其他来源没有，因此按字节计",
    ),
    "files only": (
        "has no folders: to pretrain.py it is one source by itself; give it as --train_file with /* after it",
        "没有子文件夹：对 pretrain.py 来说它自己是一个来源；请在 --train_file 中加上 /*",
    ),
    "no data": ("no data file, left out", "没有数据文件，未计入"),
}


class Texts:
    """`texts("key", name=…)` in one language."""

    def __init__(self, language: str):
        self.language = language

    def __call__(self, key: str, **values) -> str:
        text = (_TEXTS | REASONS)[key][self.language != "en"]
        return text.format(**values) if values else text
