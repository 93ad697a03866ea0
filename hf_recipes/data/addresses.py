"""Street addresses, down to a house or a room, in Chinese text."""

import re
from collections.abc import Iterator

_PROVINCES = re.compile(
    "北京|天津|上海|重庆|河北|山西|辽宁|吉林|黑龙江|江苏|浙江|安徽|福建|江西|山东|河南|湖北|湖南|广东|海南|四川|贵州|云南|陕西|甘肃|青海"
    "|台湾|内蒙古|广西|西藏|宁夏|新疆|香港|澳门"
)
_STOPS = frozenset("在住到至寄是的了于给我你他她它们这就说送往填写址递称叫从去离找搬改为跟与及每各某")
_LABELS = re.compile(".*(?:地点|门牌号?|位置|发货|收货|收件|快递|外卖|单位|公司|老家|坐标)")
_ADMINISTRATIVE = "省市区县镇乡州旗"
_NOT_NAMES = (
    "知道",
    "报道",
    "频道",
    "通道",
    "跑道",
    "赛道",
    "轨道",
    "味道",
    "难道",
    "隧道",
    "铁路",
    "公路",
    "线路",
    "逛街",
    "走路",
)

_COUNT = r"(?:[0-9]{1,5}|[一二三四五六七八九十百零]{1,4}|[A-Za-z]|[甲乙丙丁])"
_NUMBER = rf"[甲乙丙丁]?{_COUNT}(?:-{_COUNT})*"
_NOT_AFTER = r"(?![线站口机桌店选球车文令坑馆码发门窗晚早上下当凌开之前后以考提台顶梯道里]|公告)"
_UNIT = rf"{_NUMBER} ?(?:号楼{_NOT_AFTER}|号院|号{_NOT_AFTER}|弄|栋|幢|座|单元|层|楼{_NOT_AFTER}|室|房|户|组|排)"
_DASHED = r"[0-9]{1,3}(?:-[A-Za-z]?[0-9]{1,4}){1,3}(?![0-9-])"
_NAME = f"(?:(?![{''.join(_STOPS)}])[一-鿿]){{1,10}}?"
_TAIL = re.compile(
    r"[路街道巷同弄村屯庄寨区园苑城厦场寓心府湾庭居邸舍坊墅里]"
    r"(?P<part>(?:[东南西北中一二三四五六七八九]段|[A-Z一二三四五六七八九东南西北]区|[一二三四五]期)?) ?"
    rf"(?P<tail>(?P<first>{_UNIT}|{_DASHED})(?: ?(?:{_UNIT}|{_DASHED})| ?{_NAME}(?:{_UNIT}|{_DASHED}))*(?:-?[0-9]{{3,4}}(?![0-9])[室房]?)?)"
)
_STREETS = ("路", "街", "道", "巷", "胡同", "弄")
_VILLAGES = ("村", "屯", "庄", "寨")
_HOMES = (
    "小区",
    "花园",
    "苑",
    "新村",
    "公寓",
    "家园",
    "校区",
    "宿舍",
    "别墅",
    "里",
    "湾",
    "府",
    "庭",
    "居",
    "邸",
    "区",
    "坊",
    "新城",
)
_BUILDING = re.compile(r"号楼|栋|幢|座|单元|室|房")
_PLACE = f"(?:(?:(?![{''.join(_STOPS)}])[一-鿿]){{1,8}}?(?:省|自治区|市|州|区|县|旗|镇|乡|街道|村|屯|庄))"
_LONG = re.compile(rf"(?:地址|住址|户籍|家住|老家|住在)(?:地?[:：是在为\s]*)({_PLACE}{{3,}})")


def _start(text: str, end: int) -> int:
    """Where the name of a place that ends at `end` begins."""
    start, lowest = end, max(0, end - 40)
    while start > lowest:
        sign = text[start - 1]
        if not ("一" <= sign <= "鿿" and sign not in _STOPS) and not (
            sign == " " and text[start - 2] in _ADMINISTRATIVE
        ):
            break
        start -= 1
    run = text[start:end]
    if label := _LABELS.match(run):
        start += label.end()
        run = run[label.end() :]
    if province := _PROVINCES.search(run):
        return start + province.start()
    district = next((index for index, sign in enumerate(run[:-1]) if sign in _ADMINISTRATIVE), -1)
    return start + max(0, district - 4) if district > 0 else max(start, end - 7)


def find_addresses(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each address: a street and a number, an estate and a building, a village and a group.

    The name of a city, a district or a street alone is none.
    """
    for match in _TAIL.finditer(text):
        end = match.start() + 1
        start = _start(text, end)
        name, tail = text[start:end], match["tail"]
        is_placed = any(sign in _ADMINISTRATIVE for sign in name[:-2])
        if (
            len(name) < 2 + name.endswith(("小区", "校区", "花园"))
            or name.endswith(_NOT_NAMES)
            or name.endswith("唐宁街")
        ):
            continue
        if name.endswith(_STREETS):
            accepted = re.search("号|弄", match["first"])
        elif name.endswith(_VILLAGES):
            accepted = re.search("组|号|排", match["first"])
        elif name.endswith(_HOMES):
            accepted = _BUILDING.search(tail) or re.fullmatch(_DASHED, tail) or (is_placed and "号" in tail)
        else:
            accepted = len(re.findall(f"{_UNIT}|[0-9]{{3,4}}", tail)) > 1 and _BUILDING.search(tail)
        if accepted:
            yield start, match.end()
    for match in _LONG.finditer(text):
        yield match.span(1)
