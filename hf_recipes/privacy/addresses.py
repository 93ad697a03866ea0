"""Street addresses, down to a house or a room, in Chinese text."""

import re
from collections.abc import Iterator
from itertools import chain

from hf_recipes.privacy.spans import Span

_PROVINCES = (
    "北京|天津|上海|重庆|河北|山西|辽宁|吉林|黑龙江|江苏|浙江|安徽|福建|江西|山东|河南|湖北|湖南|广东|海南|四川|贵州|云南|陕西|甘肃|青海"
    "|台湾|内蒙古|广西|西藏|宁夏|新疆|香港|澳门"
)
_PROVINCE = re.compile(rf"(?:{_PROVINCES})(?![东南西北中]?[一二三四五六七八九]?[路街道巷弄])")
_STOPS = frozenset("在住到至寄是的了于给我你他她它们这就说送往填写址递称叫从去离找搬改为跟与及每各某有")
_LABELS = re.compile(".*(?:地点|门牌号?|位置|发货|收货|收件|快递|外卖|单位|公司|老家|坐标)")
_ADMINISTRATIVE = "省市区县镇乡州旗"
_NOT_NAMES = re.compile("(?:[知报频通跑赛轨味难隧]道|[铁公线走条段]路|条街|逛街|唐宁街)$")

_COUNT = r"(?:[A-Z]?[0-9]{1,5}|[一二三四五六七八九十百零]{1,6}|[A-Za-z]|[甲乙丙丁])"
_NUMBER = rf"[甲乙丙丁]?{_COUNT}(?:-{_COUNT})*"
_NOT_AFTER = (
    r"(?![线站口机桌店选球车令坑馆码发门窗晚早上下当凌开前后以考提台顶梯道里桥]|公告|文件|之(?![一二三四五六0-9]))"
)
_BLOCK = (
    rf"(?:[号#](?:(?:宿舍|公寓)?楼{_NOT_AFTER}|(?:宿舍|公寓)(?=[0-9])|商?铺|档口)|栋|幢"
    r"|(?<![一二三四五六七八九十百零])座)"
)
_UNIT = (
    rf" ?{_NUMBER} ?(?:{_BLOCK}|号院|号之[一二三四五六0-9]|[号楼]{_NOT_AFTER}|(?<=[0-9 ])[弄巷]"
    r"|#(?=[0-9]{3,4})|[层室房户组排]|单元|(?<=[0-9一二三四五六七八九十]) ?门(?= ?[0-9零一二三四五六七八九]{3}))"
)
_DASHED = r"[0-9]{1,3}(?:-[A-Za-z]?[0-9]{1,4}){1,3}(?![0-9-])"
_FLAT_NUMBER = re.compile(r"[0-9]{1,3}(?:-[A-Z]?[0-9]{1,2})*-[A-Z]?[0-9]{3,4}")
_ROOM = r"[0-9]{3,4}(?![0-9年月元人块米平个多])[室房]?"
_NAME = f"(?:(?![{''.join(_STOPS)}])[一-鿿]){{1,10}}?"
_MORE = rf"(?:{_UNIT}|{_DASHED}|[A-Z东南西北]区(?=[0-9A-Z]))"
# From the last character of a name to the last number.
_TAIL = re.compile(
    r"[路街道巷同弄村屯庄寨区园苑城厦场寓心府湾庭居邸舍坊墅里际馆郡洲]"
    r"(?:[东南西北中一二三四五六七八九]{1,2}段|[A-Z一二三四五六七八九东南西北] ?区|[0-9一二三四五六七八九]期"
    r"|[东南西北]门)? ?"
    rf"(?P<tail>(?P<first>{_MORE})(?: ?(?:{_NAME} ?)?{_MORE})*"
    rf"(?:[ -]?{_ROOM}|[一二三四五六七八九][零一二三四五六七八九]{{2,3}})?)"
    rf"(?: ?{_NAME}(?:广场|大厦|大楼|写字楼|中心|小区|花园|公寓)(?: ?{_ROOM})?)?"
)
_FLAT = re.compile(
    rf"(?:[0-9一二三四五六七八九]期 ?)?[0-9A-Z]{{1,3}} ?{_BLOCK} ?(?:{_NUMBER} ?单元 ?(?:{_ROOM}|{_UNIT})|{_ROOM})"
)
_STREETS = re.compile("(?:[路街道巷弄]|胡同)$")
_VILLAGES = re.compile("[村屯庄寨]$")
_HOMES = re.compile("(?:花园|新村|公寓|家园|宿舍|别墅|新城|国际|公馆|[郡区苑里湾府庭居邸坊洲])$")
_BUILDING = re.compile(r"#|号(?:宿舍|公寓|楼|商?铺|档口)|栋|幢|座|单元|室|房|[0-9一二三四五六七八九十] ?门")
_PLACE = f"(?:(?:(?![{''.join(_STOPS)}])[一-鿿]){{1,8}}?(?:省|自治区|市|州|区|县|旗|镇|乡|街道|村|屯|庄))"
_LONG = re.compile(rf"(?:地址|住址|户籍|户口|家住|老家|住在)(?:地?[:：是在为\s]*)({_PLACE}{{3,}})")

_VILLAGE = re.compile(
    rf"[镇乡道](?<![^街]道)(?:(?![{''.join(_STOPS)}])[一-鿿]){{1,6}}?[村屯庄](?![一-鿿]{{0,4}}[村屯庄])(?:委会)?(?:{_COUNT}[组队社])?"
)

_has_english = re.compile(r"(?:Road|Rd|Street|St|Avenue|Ave|Lane)\b").search
_ENGLISH = re.compile(
    r"(?:(?:Room|Rm|Flat|Unit|Building|Bldg|Block|No)\.? ?[0-9A-Z]{1,6}, ?){0,4}[0-9]{1,5},? (?:Lane [0-9]{1,5}, ?)?"
    r"(?:[A-Z][A-Za-z']+ ){1,4}(?:Road|Rd|Street|St|Avenue|Ave|Lane)\b"
)

_DEGREES = r"(?:[0-9]{1,3}°[0-9]{1,2}[′'’](?:[0-9]{1,2}(?:\.[0-9]+)?[″\"”])?|[0-9]{2,3}\.[0-9]{4,}°?)"
_DIRECTION = "(?:[NSEWnsew]|[北南]纬|[东西]经|[经纬]度)?[:： ]?"
_COORDINATES = re.compile(
    rf"(?:定位|坐标|位置|GPS)[^0-9\n]{{0,6}}?"
    rf"({_DIRECTION}{_DEGREES} ?{_DIRECTION}[,，、/ ]{{0,2}}{_DIRECTION}{_DEGREES}(?: ?[NSEW](?![A-Za-z]))?)"
)


def _start(text: str, end: int) -> int:
    """The start of the place name that ends at `end`."""
    start, lowest = end, max(0, end - 40)
    while start > lowest:
        sign = text[start - 1]
        is_name = "一" <= sign <= "鿿" and sign not in _STOPS
        if not is_name and not (sign == " " and start > 1 and text[start - 2] in _ADMINISTRATIVE):
            break
        start -= 1
    run = text[start:end]
    if label := _LABELS.match(run):
        start += label.end()
        run = run[label.end() :]
    if province := _PROVINCE.search(run):
        return start + province.start()
    district = next((index for index, sign in enumerate(run[:-1]) if sign in _ADMINISTRATIVE), -1)
    return start + max(0, district - 4) if district > 0 else max(start, end - 7)


def _is_address(name: str, first: str, tail: str) -> bool:
    if len(name) < 2 + name.endswith(("小区", "校区", "花园")) or _NOT_NAMES.search(name):
        return False
    if _STREETS.search(name):
        return bool(re.search("[号弄巷排]", first))
    if _VILLAGES.search(name):
        return bool(re.search("[组号排]", first))
    if _HOMES.search(name):
        is_placed = "号" in tail and any(sign in _ADMINISTRATIVE for sign in name[:-2])
        return is_placed or bool(
            re.search("号[ -]?[0-9]{3,4}", tail) or _BUILDING.search(tail) or _FLAT_NUMBER.fullmatch(tail)
        )
    # A tower or a centre is an address only with a room in it.
    return len(re.findall(f"{_UNIT}|[0-9]{{3,4}}", tail)) > 1 and bool(_BUILDING.search(tail))


def addresses(text: str) -> Iterator[Span]:
    """A street and a number, an estate and a building, a village and a group; not a city, district or street alone."""
    for match in _TAIL.finditer(text):
        start = _start(text, match.start() + 1)
        if _is_address(text[start : match.start() + 1], match["first"], match["tail"]):
            yield Span(start, match.end(), "address")
    for match in _ENGLISH.finditer(text) if _has_english(text) else ():
        yield Span(*match.span(), "address")
    for match in _FLAT.finditer(text):
        yield Span(_start(text, match.start()), match.end(), "address")
    for match in chain(_LONG.finditer(text), _COORDINATES.finditer(text)):
        yield Span(*match.span(1), "address")
    for match in _VILLAGE.finditer(text):
        start = _start(text, match.start() + 1)
        if len(re.findall("[省市区县州旗]", text[start : match.start()])) > 1:
            yield Span(start, match.end(), "address")
