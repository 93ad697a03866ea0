"""Accounts and internet addresses: keys in links, e-mail, QQ, WeChat, IP."""

import ipaddress
import re
from collections.abc import Iterator

from hf_recipes.privacy.spans import Span, before, groups

secrets = groups(
    "secret",
    re.compile(
        r"[?&](?:[a-z_-]*(?:token|secret|passw(?:or)?d|pwd|signature|auth_?key|api_?key|session(?:_?id)?|sid|ticket|jwt)"
        r"|key(?==[\w-]*[0-9])(?==[\w-]*[A-Za-z])(?==[\w-]{12})|(?:code|sign)(?==[\w%-]{8}))=([^&#\s<>\"'，。；）)]+)",
        re.I,
    ),
    re.compile(r"://[^\s/:@]*:([^\s/<][^\s/]*)@"),
    re.compile(r"[Bb]earer ([\w.~+/-]{12,}=*)", re.A),
    # By the issuer's prefix: OpenAI and others, Hugging Face, GitHub, GitLab, AWS, Aliyun, Tencent, Google, Slack, JWT.
    re.compile(
        r"(?<![A-Za-z0-9_-])((?:sk-|hf_|gh[pousr]_|github_pat_|gsk_|npm_|r8_)[\w-]{16,}|glpat-[\w-]{10,}|AKIA[0-9A-Z]{16}|LTAI[0-9A-Za-z]{12,}|AKID[0-9A-Za-z]{16,}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,}"
        r"|eyJ[\w-]{8,}\.[\w-]+\.[\w-]+)",
        re.A,
    ),
    re.compile(
        r"(?:token|secret(?:_key|_id)?|(?:api|access|auth|private)[_-]?key|SESSDATA|bili_jct|密钥)[\"']?\s*[=:：]\s*[\"']?"
        r"((?=[a-z_.+/~%-]*[0-9])(?=[0-9_.+/~%-]*[a-z])[\w.+/~%-]{12,}=*)",
        re.I | re.A,
    ),
    re.compile(
        r"(?:密码|口令|password|passwd|pwd)(?:改成|换成|[是为:：=\s])*((?=[!-~]*[0-9])(?=[!-~]*[A-Za-z])[!-;=?-~]{5,31}[^\s,.;:)\]'\"<>])",
        re.I | re.A,
    ),
    re.compile(
        r"(?:(?<!动态)密码|口令)(?:[:：]\s*(?=[0-9]{4})|[是为 ]{1,2}(?=[0-9]{6}))([0-9]{4,16})(?![0-9A-Za-z位])"
    ),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s*([A-Za-z0-9+/=\s]+)"),
    re.compile(r"(?:提取|访问)码[是为:：\s]{0,2}([A-Za-z0-9]{4,8})(?![0-9A-Za-z])"),
)

_LOCAL_PART = r"(?<![\w.+/-])(?!git@|x+@)[\w.+-]{1,64}"
_AT = r"(?:@| ?[(（\[【] ?(?:at|@|艾特|圈a|a) ?[)）\]】] ?| ?(?:艾特|圈a) ?|(?-i: AT ))"
_DOT = r"(?:[.。]| ?[(（\[【] ?(?:dot|点|\.) ?[)）\]】] ?| dot | ?点 ?)"
_NAME = "[a-z0-9-]+"
_DOMAIN = (
    rf"(?:(?:[a-z0-9-]+|[一幺](?:六三|二六)){_DOT})+"
    r"(?:(?!(?:png|jpe?g|gif|webp|svg|js|css|py|html?)\b)[a-z]{2,}|[抗康]姆)"
)
emails = groups(
    "email",
    re.compile(rf"({_LOCAL_PART}{_AT}{_DOMAIN})", re.I | re.A),
    re.compile(rf"({_LOCAL_PART}\s?@\s?(?:{_NAME} ?\. ?)+(?:com|cn|net|org|edu|gov|io)\b)", re.I | re.A),
    re.compile(rf"({_LOCAL_PART}#(?:[a-z0-9-]+\.)+(?:com|cn|net|org|edu|gov|io|me|cc|xyz|top)\b)", re.I | re.A),
    re.compile(rf"(?:邮箱|邮件|mail)[^a-z0-9]{{0,6}}({_LOCAL_PART} (?:at|@) ?{_DOMAIN})", re.I | re.A),
    re.compile(rf"((?=[a-z]+[0-9._]){_LOCAL_PART} at (?:{_NAME}\.)+[a-z]{{2,}})\b", re.I | re.A),
    re.compile(
        rf"({_LOCAL_PART} at (?!the ){_NAME} ?(?:(?:dot|点) ?{_NAME} ?)*(?:dot|点) ?(?:com|cn|net|org|edu|io)\b)",
    ),
)

_QQ = (
    r"((?!(?P<same>[0-9])(?P=same)+(?![0-9]))(?!(?:19|20)[0-9]{2}[ -](?:0?[1-9]|1[0-2])(?![0-9]))[1-9]"
    r"(?:[0-9]{4,10}|[0-9]{2,3}(?:[ -][0-9]{2,5}){1,2}(?:[ -][0-9]{1,4})?|(?:[ ,，.-][0-9]){5,10}"
    r"|[0-9]?(?:[ -][0-9]{3,5}){2}))"
    r"(?![0-9A-Za-z]|\.[0-9]| ?[万亿元人年次块积分点钱克米个])"
)
_qqs = groups(
    "qq",
    # With more digits, further from the word.
    re.compile(
        r"(?:[Qq]{2}|[Qq](?<![A-Za-z][Qq])(?![A-Za-z])|企鹅|扣扣|球球|抠抠|叩叩|蔻蔻|口口|秋秋|丘丘|[抠叩](?=[0-9])|[群裙峮])"
        r"(?:(?![单条][号码]|编号)[^0-9\n]){0,10}?"
        r"((?!(?P<same>[0-9])(?P=same)+(?![0-9]))(?!(?:19|20)[0-9]{2}[ .·—–_-]?(?:0[1-9]|1[0-2]))"
        r"[1-9](?:[ .·—–_-]?[0-9]){7,10})"
        r"(?![0-9A-Za-z]|[.,:][0-9A-Za-z]| ?[万亿元人年次块积分点钱克米个只条])"
    ),
    re.compile(
        r"(?:[Qq扣球鹅群裙峮号抠叩蔻寇口秋丘🐧](?:(?<=[Qq][Qq])|(?<=[Qq扣])(?<![A-Za-z][Qq])(?![0-9]{1,6}(?![0-9]))|(?<=🐧)|(?<=[加进入建扣抠蔻叩][群裙峮])"
        r"|(?<=球球|企鹅|加鹅|群号|裙号|抠抠|叩叩|蔻蔻|寇寇|口口|秋秋|丘丘)|(?<=[群裙峮])(?=[号里在]{0,2}[:：])"
        r"|(?<=[抠叩])(?=我|[:：]))|[Qq]un号?)"
        r"[号码群裙峮里大小新是不同Vv微信账帐为叫成改换了我加搜的发聊找问私进来看领联系:：=/|｜~(（\[【「，,\s]{0,6}"
        + _QQ
    ),
    re.compile(
        r"([1-9](?<![0-9A-Za-z._-][1-9])[0-9]{5,10})"
        r"(?=[ (（，,]{0,2}[这那]?个?是?(?:我的?)?(?:[大小]号|新)?(?:[Qq]{2}(?![A-Za-z0-9音飞空])|[Qq]号|扣扣|企鹅号))"
    ),
)

_ANOTHER_QQ = re.compile(
    r"[)）】 ]*(?:[、，,/]|[^0-9\n]{0,6}?(?:[换进加]|或者?|和|还有|备用?|新号)[)）】:： ]*) ?"
    r"([1-9][0-9]{6,10})(?![0-9A-Za-z]|\.[0-9])"
)


def qqs(text: str) -> Iterator[Span]:
    """QQ numbers after a word for them, and further ones after these."""
    for span in _qqs(text):
        yield span
        end = span.end
        while match := _ANOTHER_QQ.match(text, end):
            yield Span(*match.span(1), "qq")
            end = match.end()


_END = r"(?![A-Za-z0-9_-])"
_ANY_ID = r"([A-Za-z](?:[A-Za-z0-9_-]{5,19}|(?: [A-Za-z0-9_-]){5,19}))" + _END
_ID = (
    r"(?!(?i:i?phone|i?pad|android|win(?:dows)?|mac(?:os)?|i?os|chrome|python|version|beta)[0-9._-]*(?![A-Za-z0-9]))"
    r"(?=[A-Za-z]{0,19}[0-9_-]|(?:[A-Za-z] ){1,19}[0-9_-])" + _ANY_ID
)  # a mere word may be anything
_FILLER = (
    r"(?:号码?|[Ii][Dd]|是|为|叫|改成|换成|了|搜索?|加我?|联系|[同/]?(?:抖音|快手|微博|[Qq]{2}|小红书)|同|is|[吧哈呀哦]"
    r"|[^\w。！？!?，,；;、\"'@.<>-])*"
)
_WEI = "微薇徽威维唯魏惟嶶葳"
_HEART = "[❤♥♡💗💕]"
_wechats = groups(
    "wechat",
    re.compile(
        rf"[{_WEI}围卫Vv绿i](?:(?<=绿)(?:泡泡|色软件)|(?<=wei)信|(?<=[{_WEI}Vv])(?: ?[Xx](?![A-Za-z])| ?[芯心新辛欣])"
        rf"|(?<![绿i])(?:(?: ?{_HEART})? ?[信讯]|{_HEART})|(?<=[{_WEI}])我)" + _FILLER + _ID
    ),
    re.compile(r"(wxid_[a-z0-9]{8,})(?![a-z0-9])"),
    re.compile(r"微信(?:号|[Ii][Dd])(?:是|为|[:：\s])*" + _ANY_ID),
    re.compile(r"微信[^\n]{1,16}?(?<=[搜加用是叫成为])[:： ]?" + _ID),
    re.compile(rf"[加+➕] ?[我个]?(?:[Vv][Xx]?|[Ww][Xx]|[{_WEI}💚💬])(?:{_FILLER}[，,])?" + _FILLER + _ID),
    re.compile(
        rf"(?:[{_WEI}][:：]|薇 ?|[我加+➕][VvWw][Xx]|我的?[Vv](?:是|[:：])|[Vv](?<![A-Za-z0-9_][Vv])我[，,]?)\s*" + _ID
    ),
    re.compile(r"[VvWw](?<![A-Za-z0-9_][VvWw])(?: ?[Xx]|ei[Xx]in|e[Cc]hat)(?![A-Za-z_-])" + _FILLER + _ID),
    re.compile(r"[Vv](?<![A-Za-z0-9_][Vv])[Vv]{0,4}：\s*" + _ID),
    # Satellites are written in capitals.
    re.compile(r"(?:卫星|🛰)(?:号?[:：]\s*|号?(?:联系|私?聊|加我?|找我|同号)?\s?(?=[a-z][a-z0-9_-]+(?![A-Z])))" + _ID),
)

_before_word = groups(
    "wechat", re.compile(r"(?<![A-Za-z0-9._-])" + _ID + r"(?=[ ，,]{0,2}(?:[(（]微信[)）]|这?是我的?微信))")
)


def wechats(text: str) -> Iterator[Span]:
    yield from _wechats(text)
    if "微信" in text:
        yield from _before_word(text)


_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z]|\.[0-9])")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4}(?![0-9A-Za-z:.])")
_VERSION = re.compile(r"(?:版本?|version|ver\.?|固件|升级|更新|升)[^0-9]{0,3}$|[\w.]$|[a-z]/$", re.I | re.A)
_HOST = re.compile(r"(?:ip|地址|服务器|主机|ssh|ping)[是为:：\s]{0,3}$|[@/]$", re.I)
_NAME_SERVERS = {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "114.114.114.114", "114.114.115.115"}
_NAME_SERVERS |= {"223.5.5.5", "223.6.6.6", "119.29.29.29", "180.76.76.76"}
# Not `ipaddress.is_private`, which includes 203.0.113.0/24 and other networks that people use as examples.
_LOCAL_NETWORKS = ["0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"]
_LOCAL_NETWORKS += ["224.0.0.0/3", "::/127", "fc00::/7", "fe80::/10", "ff00::/8"]
_LOCAL_NETWORKS = [ipaddress.ip_network(network) for network in _LOCAL_NETWORKS]


def _is_personal(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return address not in _NAME_SERVERS and not any(parsed in network for network in _LOCAL_NETWORKS)


def ips(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        prefix = before(text, match.start(), 10)
        # Four numbers below 100 are mostly a version, a section or a table (only 2 % of all addresses have no other).
        small = all(len(part) < 3 for part in match[0].split("."))
        if not _VERSION.search(prefix) and (not small or _HOST.search(prefix)) and _is_personal(match[0]):
            yield Span(*match.span(), "ip")
    if text.count(":") > 2:
        for match in _IPV6.finditer(text):
            if len(re.findall("[0-9A-Fa-f]+", match[0])) > 2 and _is_personal(match[0]):
                yield Span(*match.span(), "ip")
