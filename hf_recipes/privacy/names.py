"""Names of people: the members of a chat, and addressees of parcels and forms."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import chain

from hf_recipes.privacy.spans import Span, before, groups, plain

_joined = re.compile("[A-Za-z0-9_]{2}").fullmatch  # ASCII names match whole words, numbers whole numbers
_joined_digits = re.compile("[0-9]{2}").fullmatch
_COMMON = 10  # smallest count in jieba's corpus of an ordinary word

# The surnames of 95 % of the people of China; the others of 百家姓 and of some ten thousand people, without those
# that are mostly other words (和, 都, 有, …).
_COMMON_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹"
    "薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤傅康易乔赖文施洪季窦满柴柳祁岑庄翁骆樊殷齐梅盛倪俞章鲁葛詹关蓝牛游符"
)
_SURNAMES = _COMMON_SURNAMES + (
    "褚卫尤华戚喻柏水云奚郎昌"
    "苗凤花费廉滕毕邬安常乐时皮卞伍元卜平穆萧湛禹狄明臧计伏成茅庞纪舒屈项祝阮闵席麻强路娄危童颜刁凌霍虞支柯昝管经房裘缪解应宗宣贲郁单杭包诸左吉钮嵇邢滑裴荣"
    "荀羊於惠甄曲封芮羿储靳汲邴糜松井富巫乌焦巴弓牧隗谷车宓蓬全郗班仰仲伊宫宁仇栾甘钭厉戎祖景束幸司韶郜蓟薄印宿怀蒲邰鄂索咸籍卓蔺屠蒙池阴胥苍闻莘党翟贡劳逄"
    "姬扶堵冉宰郦雍璩桑桂濮寿边扈燕冀郏浦尚农温晏瞿阎慕连茹习宦艾鱼容古慎戈庾暨居衡步耿弘匡国寇广禄阙殳沃利蔚越夔隆师巩厍聂晁勾敖融冷訾辛阚简饶沙乜养鞠丰巢"
    "查荆红竺权逯盖益桓仉督岳帅缑亢况郄琴商牟佘佴伯赏墨谯笪阳佟邸代仝冼揭麦鹿亓郤苟苑楚晋英辜蹇禤粟谌芦尧苌锺翦冶矫才迟战丛衣郇邝郐矣占库寸仵门兰旷母楼丘栗"
    "鄢镡呙初哈肇闪妥乃依尼扎奉招邺桦檀折庹撒沐睢隽笃揣洛涂汝雒萨彦豆敬税原漆锁芈蒯相佰仡寻展由植苻岩茆粘辉练镇仙青蒿卯酆鲍米贝谈干山秋暴申东欧毋公"
)
_COMPOUND = (
    "欧阳|司马|上官|诸葛|司徒|东方|皇甫|尉迟|慕容|令狐|夏侯|轩辕|长孙|宇文|鲜于|闾丘|司空|公孙|仲孙|钟离|濮阳|淳于|单于|太叔|申屠|公羊"
    "|公冶|赫连|澹台|宗政|东郭|南宫|西门|百里|呼延|万俟|尔朱|闻人|第五|拓跋|独孤|端木|南门|纳兰|完颜|叶赫那拉|叶赫|爱新觉罗|钮祜禄"
    "|漆雕|乐正|壤驷|公良|夹谷|宰父|谷梁|段干|羊舌|微生|梁丘|左丘|颛孙|子车|巫马|公西|亓官|司寇|吉克|阿尔|沙马"
)
_SURNAME = f"(?:{_COMPOUND}|[{_SURNAMES}])"
_FULL_NAME = re.compile(rf"{_SURNAME}[一-鿿]{{2}}").fullmatch
_TITLE = "先生|女士|小姐|同学|老师|师傅"
# What is written after a surname instead of a given name, and what no given name holds.
_NO_NAME = f"(?:{_TITLE}|[某总哥姐叔]|经理|主任|医生|护士|阿姨|大[哥姐妈爷叔]|老板)"
_GIVEN = "(?![的了是在不没我你他她它们这那哪什谁些吗吧呢啊呀嘛某就都也还很又被把跟着得和与或])[一-鿿]"
_LABELS = (
    "(?:[收寄发取][件货]|[收付汇转打]款|签收|联系|联络|申请|持卡|开户|投保|被?保险|经办|负责|代理|委托|登记|预订|报名|入住|乘车|当事|监护|担保|借款|承租|出租|提货|领取|订票|报修|报案|推荐|介绍|下单|代收|授权|受益)人"
    "|人(?<=[一-鿿]{3})(?<!主持人|发言人|主讲人|出品人|创始人|候选人|代言人|解说人|撰稿人|经纪人|策划人|制作人|制片人|监制人|发明人|提名人|主理人|导演人|编剧人)(?=[:：])"
    "|户[名主]|[账开]户名称?|[收寄]方|[收付]款方|姓名|法人(?:代表)?|[全真本]名|(?:患者|病人)(?=[叫:：])"
    "|[收寄][件货](?=[:：])|(?:乘客|旅客|学员|学生|家长|员工|客户|签[字名]|家属|[父母]亲|配偶|班主任|导师|司机|主[治刀](?:医[生师]|大夫)|(?:接诊|管床|责任)(?:医[生师]|护士)|新[郎娘]|[甲乙男女]方|[车业机]主|租客|房东)(?=[:：])"
)
# Most texts have none.
_introduces = re.compile(
    rf"[叫名]|{_LABELS}|[收寄][件货]|本人|我是|我[爸妈]是|老[公婆]是|身份证上|这位是|尊敬的"
    "|y (?:full )?name|医[生师]|大夫|护士|主任|[转打汇付]给|写|[,，、 ][男女]|1[3-9][0-9]"
).search
_FILLED = (
    r"(?:[(（][一-鿿]{1,6}[)）])?(?:改成|换成|改为|[:：是为叫写填\s]){0,4}"
    r"(?:我?(?:[爸妈]|父亲|母亲|爱人|妻子|丈夫|老[公婆]|[儿子]子|女儿|[哥弟姐妹]+)[，,：: ])?"
)
_FULL = (
    rf"{_SURNAME}(?!{_NO_NAME})"
    rf"(?:[ \u3000]{{1,2}}{_GIVEN}[ \u3000]{{1,2}}{_GIVEN}(?![一-鿿])|[ \u3000]{{0,2}}{_GIVEN}{_GIVEN}??)"
)
_labelled = groups(
    "person",
    re.compile(
        rf"(?:{_LABELS}){_FILLED}(?!陈述)({_FULL})(?=\s*(?:$|[^一-鿿\s])|\s*(?:{_TITLE})|\s+[一-鿿]"
        "|[收的就已说要于在即及等吗吧呢]|电话|手机|身份|号码|地址|住址|联系)"
    ),
    re.compile(
        rf"(?:{_LABELS}|[收寄][件货]){_FILLED}"
        "([一-鿿]{2,8}[·•・][一-鿿]{2,8}|[A-Z][a-z]+(?: [A-Z][a-z]+){1,2})(?![A-Za-z一-鿿])"
    ),
)
_next_name = re.compile(rf"[、和及/]({_FULL})(?![一-鿿])").match
# Three characters that are no words may have any surname: 户名：檀健次, 我叫脱小磊.
_unknown_surnames = groups(
    "person",
    re.compile(
        rf"(?:(?:{_LABELS})[:：是为叫\s]{{1,3}}|我叫|[孩儿]子叫|女儿叫)((?![未暂请待无同见如需已另可本来上下大小老])(?:{_GIVEN}){{3}})(?![一-鿿])"
    ),
)
# 联系人：张经理, 收件人：门卫室, 我叫滴滴去
_is_no_name = re.compile(rf".(?:{_NO_NAME}).*|(.)\1.|.*[部室处台站店局所厅柜点组班队会院校区层楼库仓司去来]").fullmatch
_named = groups(
    "person",
    re.compile(
        r"(?:我(?:[爸妈]|老[公婆])?[叫是](?:(?:新人|新来的|业主|房东|租客|家长|客服) ?)?"
        r"|(?:[他她爸妈]|[儿孩]子|女儿|闺女|丫头|姑娘|宝宝|孙[子女]|侄[子女]|外甥女?|老[公婆]|[弟妹哥姐同朋][弟妹哥姐学友事])叫"
        r"|我?[爸妈]?(?:名字|名叫|真名)[是叫，,：: ]{0,2}"
        r"|本人|身份证上是|这位是)"
        rf"({_FULL})(?=$|[^一-鿿\w]|郑重|承诺|申请|自愿|声明|[因系])"
    ),
    re.compile(rf"尊敬的({_FULL})(?={_TITLE})"),
    re.compile(r"\b[Mm]y (?:full )?name(?: is|'s|:) ([A-Z][a-z]+(?: [A-Z][a-z]+){0,2})\b"),
    # 我是人事部的符晓芸
    re.compile(
        rf"我是[^的，,。\s]{{0,8}}(?:[部店司行院校班组科处队所室馆厂楼]的|部(?!门)|[店班科])({_FULL})(?=$|[^一-鿿\w])"
    ),
    re.compile(rf"写({_FULL})(?=收(?![一-鿿]))"),
    re.compile(rf"[转打汇付]给({_FULL})(?=$|[^一-鿿\w])"),
    # 王小明，男，35岁; 王小明 139…; 请找王小明大夫
    re.compile(
        rf"(?:^|[^一-鿿\w]|患者|病人)({_FULL})[，,、 ]{{1,2}}[男女][，,、 ]{{0,2}}[0-9]{{1,2}} ?岁(?!以|左右)", re.M
    ),
    re.compile(
        rf"(?:^|[^一-鿿\w])(?=[{_COMMON_SURNAMES}])({_FULL})(?<!家) ?[，,、:：/ ] ?"
        "(?=1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}(?![0-9]))",
        re.M,
    ),
    re.compile(
        rf"(?:^|[^一-鿿\w]|[找请挂问给和跟由是])({_SURNAME}(?!{_NO_NAME}){_GIVEN}{{2}})(?=医[生师]|大夫|护士|主任)",
        re.M,
    ),
    re.compile(r"我(?:的名字)?[叫是]([一-鿿]{2,8}[·•・][一-鿿]{2,8})(?![一-鿿])"),
)
_greeted = groups("person", re.compile(rf"^({_FULL})(?=(?:{_TITLE})[，,！!]?[您你]好)", re.M))
# 我是高三, 我是颜控, 我是汪星人
_is_a_kind = re.compile(r".[一二三四五六七八九十]|(.)\1|.*[人员党控狗粉座族派者迷型版]").fullmatch


def people_named(text: str) -> Iterator[Span]:
    """Full names after 收件人, 联系人, 户名 and the like, and after 我叫 and the like, of people who are no members."""
    introduced = _introduces(text)
    for span in _labelled(text) if introduced else ():
        parts = text[span.start : span.end].split()
        if not any(map(_is_word, ("".join(parts), *(given for given in parts[1:] if len(given) > 1)))):
            yield span
            if match := _next_name(text, span.end):
                yield Span(*match.span(1), "person")
    for span in _unknown_surnames(text) if introduced else ():
        name = text[span.start : span.end]
        if not (_is_no_name(name) or _is_a_kind(name) or _is_word(name) or _is_word(name[:2])):
            yield span
    for span in chain(_named(text) if introduced else (), _greeted(text) if "好" in text else ()):
        name = text[span.start : span.end]
        head = name if re.match(_COMPOUND, name) else name[:2]
        is_rare = len(name) == 2 and name[0] not in _COMMON_SURNAMES
        is_word = text[: span.start].endswith("是") and (is_rare or name in _dictionary())  # 我是颜控, 我是黄牛
        if not (is_word or _is_a_kind(name) or _is_word(name) or _is_word(head)):
            yield span


@cache
def _dictionary() -> dict[str, bool]:
    """Words of jieba's dictionary (lines of word, count, part of speech): whether common, and no names of people."""
    rows = (line.split(" ") for line in (files("jieba") / "dict.txt").read_text("utf-8").splitlines())
    return {word: int(count) >= _COMMON and not tag.startswith("nr") for word, count, tag in rows}


def _is_word(text: str) -> bool:
    return _dictionary().get(text, False)


_is_colloquial = re.compile(f"老[{_COMMON_SURNAMES}]").fullmatch


def _is_ordinary(name: str) -> bool:
    if len(name) == 1 or (name.isascii() and len(name) < 3) or (name.isdigit() and len(name) < 5):
        return True
    return _is_word(name) and not _is_colloquial(name)


_MENTION = re.compile(r"(?<![0-9A-Za-z_.+-])[@＠]([^\s@＠]{1,40})(?=\s|$)")
_EVERYONE = {"全体成员", "所有人", "全体群员", "管理员", "all", "everyone"}


def mentioned(text: str) -> list[str]:
    """Names in mentions as chat clients write them: ``@name`` before a space or the end."""
    return [name for name in _MENTION.findall(text) if name not in _EVERYONE]


# Symbols without punctuation: the nickname "真的吗？" must not match 真的吗.
_ORNAMENTS = r"[^0-9A-Za-z一-鿿\s!-/:-@\[-`{-~、。，！？：；…—～·“”‘’「」『』《》【】（）]+"
_WITH_ORNAMENTS = re.compile(rf"^{_ORNAMENTS}|{_ORNAMENTS}$")


def _variants(name: str) -> Iterator[str]:
    """`name` without ornaments around it (``ღ糖糖ღ``), and in lower and upper case unless it is a mere word."""
    bare = _WITH_ORNAMENTS.sub("", name)
    if len(re.findall("[一-鿿]", bare)) > 1:
        yield bare
    if name.isascii() and not name.isalpha():
        yield from (name.lower(), name.upper(), name.capitalize())


class People:
    """Finds names of `people`; see `Redactor`."""

    def __init__(self, people: Mapping[str, Iterable[str]] | Sequence[str]):
        named = people if isinstance(people, Mapping) else dict.fromkeys(people, ())
        self._numbers: dict[str, int] = {}
        for number, (name, others) in enumerate(named.items(), 1):
            for each in (name, *others):
                self._numbers.setdefault(each.strip(), number)
        for name, number in list(self._numbers.items()):
            for variant in _variants(name):
                self._numbers.setdefault(variant, number)
        given = {}
        for name, number in self._numbers.items():
            if _FULL_NAME(plain(name)[0]):
                given.setdefault(name[-2:], number)
            elif name.isascii() and name.isalpha():
                given.setdefault(name.lower(), number)
                given.setdefault(name.upper(), number)
        # A member whose name is a placeholder needs no other one.
        for name in ("", *(f"用户{number}" for number in range(1, len(named) + 1))):
            self._numbers.pop(name, None)
        ordinary = {name for name in self._numbers if _is_ordinary(name)}
        self._words = _Names(ordinary | given.keys())
        self._names = _Names(self._numbers.keys() - ordinary)
        self._given = _Names(given.keys() - self._numbers.keys())
        self._numbers = given | self._numbers

    def find(self, text: str) -> Iterator[Span]:
        for start, end in self._names.find(text):
            name = text[start:end]
            joined = _joined_digits if name.isdigit() else _joined
            if not (joined(text[max(0, start - 1) : start + 1]) or joined(text[end - 1 : end + 1])):
                yield Span(start, end, "person", self._numbers[name])
        for address in _ADDRESS.finditer(text) if self._words else ():
            start = address.end()
            end = self._words.end(text, start)
            if end and (_AFTER_HEADER if address[0] == "" else _AFTER_MENTION).match(text, end):
                yield Span(start, end, "person", self._numbers[text[start:end]])
        for start, end in self._given.find(text):
            if _ADDRESSED.match(text, end) or self._is_called(text, start, end):
                yield Span(start, end, "person", self._numbers[text[start:end]])

    @staticmethod
    def _is_called(text: str, start: int, end: int) -> bool:
        """Whether the given name [start, end) opens a message or follows thanks, and is no ordinary word."""
        is_first = start == 0 or text[start - 1] == "\n" or _thanked(before(text, start, 4))
        return bool(is_first and _AFTER_MENTION.match(text, end)) and not _is_ordinary(text[start:end])


_THANKS = "(?:谢谢|感谢|多谢|恭喜|欢迎|辛苦了?|拜托)[，, ]?"
_ADDRESS = re.compile(f"[@＠]|回复 ?|{_THANKS}|^", re.M)
_thanked = re.compile(f"{_THANKS}$").search
_AFTER_MENTION = re.compile(r"[\s,，、。:：!！?？@＠]|$")
_ADDRESSED = re.compile(rf"[哥姐]|{_TITLE}")
_AFTER_HEADER = re.compile(r"\s?(?:[:：(（]|<[\w.+-]+@)")


class _Names:
    """A trie of names: searching for many names costs little more than for few."""

    def __init__(self, names: Collection[str]):
        self._tree: dict = {}
        for name in names:
            node = self._tree
            for sign in name:
                node = node.setdefault(sign, {})
            node[""] = {}
        self._first = re.compile(f"[{''.join(map(re.escape, self._tree))}]") if names else None

    def __bool__(self) -> bool:
        return self._first is not None

    def end(self, text: str, start: int) -> int:
        """The end of the longest name that begins at `start`, or 0."""
        node, end = self._tree, 0
        for position in range(start, len(text)):
            node = node.get(text[position])
            if node is None:
                break
            if "" in node:
                end = position + 1
        return end

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        position = 0
        for first in self._first.finditer(text) if self._first else ():
            start = first.start()
            if start >= position and (end := self.end(text, start)):
                yield start, end
                position = end
