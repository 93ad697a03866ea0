"""Write train.json, dev.json and test.json next to this file.

The rows have the shape of PromptCBLUE's CHIP-CTC task (one sentence of a
clinical trial's screening criteria in, its category out), but every sentence
is made here, from the hand-written patterns below. The output depends on this
file alone: the same code always writes the same bytes.

    python datasets/promptcblue/generate.py

A pattern belongs to one split: per category four patterns are kept for dev and
four for test, so that more than half of the dev and test rows come from
patterns that never occur in train. The rest of dev and test use the patterns of
train with other values in their slots.
"""

import itertools
import json
import random
import re
from pathlib import Path

SEED = 20240607
SIZES = {"train": 600, "dev": 100, "test": 100}
HELD_OUT = 4  # patterns per category that only dev (and as many that only test) uses
NUM_CHOICES = 4

# The five ways a row asks its question. "{c}" is the criterion, "{o}" the options.
PROMPTS = [
    "{c}\n是什么临床试验筛选标准类型？\n选项：{o}\n答：",
    "{c}\n这句话是什么临床试验筛选标准类型？\n类型选项：{o}\n答：",
    "判断临床试验筛选标准的类型：\n{c}\n选项：{o}\n答：",
    "{c}\n这条筛选标准属于哪一类？\n选项：{o}\n答：",
    "确定试验筛选标准的类型：\n{c}\n类型选项：{o}\n答：",
]

# A slot that is only a choice of words: two rows that differ in nothing else
# would count as the same criterion.
WORDING = {
    "p": ["患者", "受试者"],
    "trial": ["本研究", "本试验", "本临床试验"],
    "pre": ["入组前", "筛选前", "随机前"],
}

SLOTS = {
    # numbers and spans of time
    "mo": ["1个月", "2个月", "3个月", "6个月"],
    "mo2": ["3个月", "6个月", "12个月"],
    "wk": ["2周", "4周", "6周", "8周"],
    "day": ["7天", "14天", "30天"],
    "yr": ["1年", "2年", "3年", "5年"],
    # age
    "range": ["18～65", "18～75", "20～60", "40～80", "45～70", "50～85"],
    "range2": ["18至70", "20至65", "35至75", "30至60", "60至80"],
    "kids": ["1～3", "3～6", "6～12", "7～14"],
    "adult": ["18", "20", "35", "40", "45", "50"],
    "old": ["60", "65", "70", "75", "80", "85"],
    "school": ["6～10", "6～12", "7～12", "7～14"],
    "grown": ["18", "20", "21"],
    "minor": ["14", "16", "18"],
    # sex
    "sex": ["男性", "女性"],
    "who": ["患者", "受试者", "志愿者"],
    # diseases
    "chronic": ["高血压", "2型糖尿病", "慢性阻塞性肺疾病", "慢性肾脏病", "类风湿关节炎", "甲状腺功能亢进症"],
    "cardiac": ["心力衰竭", "不稳定型心绞痛", "急性心肌梗死", "严重心律失常", "扩张型心肌病"],
    "neuro": ["癫痫", "帕金森病", "多发性硬化", "重症肌无力", "阿尔茨海默病"],
    "psych": ["精神分裂症", "双相情感障碍", "重度抑郁症", "焦虑障碍"],
    "infect": ["活动性肺结核", "慢性乙型肝炎", "梅毒", "艾滋病", "带状疱疹"],
    "gi": ["胃溃疡", "克罗恩病", "溃疡性结肠炎", "急性胰腺炎", "肝硬化"],
    "renal": ["系统性红斑狼疮", "干燥综合征", "系统性血管炎", "多发性骨髓瘤"],
    "hered": ["癫痫", "帕金森病", "亨廷顿病", "阿尔茨海默病"],
    "cns": ["癫痫", "帕金森病", "多发性硬化", "阿尔茨海默病"],
    "attack": ["不稳定型心绞痛", "急性心肌梗死", "急性心力衰竭", "室性心动过速"],
    "pain": ["胃溃疡", "急性胰腺炎", "急性阑尾炎", "克罗恩病"],
    "immune": ["系统性红斑狼疮", "干燥综合征", "强直性脊柱炎", "银屑病"],
    "cancer": ["非小细胞肺癌", "胃腺癌", "结直肠癌", "乳腺癌", "肝细胞癌", "食管鳞癌"],
    "stroke": ["脑梗死", "脑出血", "蛛网膜下腔出血"],
    "bleed": ["血友病", "血小板减少性紫癜", "弥散性血管内凝血"],
    "eye": ["青光眼", "白内障", "糖尿病视网膜病变", "黄斑变性"],
    "organ": ["心、肝、肾", "肝、肾", "心、肺", "心、脑"],
    # drugs
    "anti": ["华法林", "利伐沙班", "阿哌沙班", "达比加群酯"],
    "platelet": ["阿司匹林", "氯吡格雷", "替格瑞洛"],
    "hormone": ["泼尼松", "地塞米松", "甲泼尼龙"],
    "immsup": ["环孢素", "他克莫司", "吗替麦考酚酯", "甲氨蝶呤"],
    "dm": ["二甲双胍", "阿卡波糖", "格列美脲", "西格列汀"],
    "bp": ["氨氯地平", "缬沙坦", "美托洛尔", "氢氯噻嗪"],
    "psydrug": ["奥氮平", "舍曲林", "丙戊酸钠", "地西泮"],
    "lipid": ["阿托伐他汀", "瑞舒伐他汀", "非诺贝特"],
    "abx": ["左氧氟沙星", "阿奇霉素", "头孢呋辛", "莫西沙星"],
    "class": ["抗凝药物", "抗抑郁药", "免疫抑制剂", "质子泵抑制剂", "非甾体抗炎药"],
    "cyp": ["CYP3A4", "CYP2C9", "CYP2D6", "CYP2C19"],
    # treatments
    "surgery": ["冠状动脉搭桥术", "甲状腺切除术", "胃大部切除术", "全髋关节置换术", "脾切除术"],
    "minor_op": ["经皮冠状动脉介入治疗", "射频消融术", "心脏起搏器植入术", "白内障摘除术"],
    "transplant": ["肾移植", "肝移植", "造血干细胞移植", "心脏移植"],
    "radio": ["胸部放疗", "盆腔放疗", "全脑放疗", "头颈部放疗"],
    "dialysis": ["血液透析", "腹膜透析"],
    "physio": ["针灸", "推拿", "电针", "经颅磁刺激"],
    "acute": ["机械取栓", "去骨瓣减压术", "急诊支架置入术"],
    "carotid": ["颈动脉支架置入术", "颈动脉内膜剥脱术"],
    # allergies
    "allergen": ["青霉素", "头孢菌素", "磺胺类药物", "碘造影剂", "鸡蛋蛋白", "大豆"],
    "allergen2": ["紫杉醇", "铂类药物", "局部麻醉药", "利多卡因", "阿司匹林"],
    "skin": ["青霉素", "头孢菌素", "普鲁卡因", "破伤风抗毒素"],
    "allergic_drug": ["青霉素", "头孢菌素", "磺胺类药物", "链霉素"],
    "inject": ["紫杉醇", "铂类药物", "碘造影剂", "免疫球蛋白"],
    "severe": ["过敏性休克", "喉头水肿", "血管性水肿"],
    "food": ["海鲜", "花生", "牛奶", "芒果"],
    "react": ["过敏性休克", "荨麻疹", "喉头水肿", "血管性水肿"],
    # tobacco and alcohol
    "cig": ["5支", "10支", "15支", "20支"],
    "pack": ["10", "20", "30"],
    "unit": ["7", "14", "21"],
    "gram": ["20g", "40g", "60g"],
    "ml": ["50ml", "100ml", "150ml"],
    "smoke_p": ["住院期间", "试验期间", "给药期间"],
    "hrs_abs": ["24小时", "48小时", "72小时"],
    # sleep
    "hrs": ["5", "6", "7"],
    "lat": ["30", "45", "60"],
    "psqi": ["5", "7", "8", "10"],
    "night": ["2次", "3次", "4次"],
    # laboratory
    "plt": ["50", "75", "80", "100"],
    "neut": ["1.0", "1.5", "2.0"],
    "hb": ["80", "90", "100", "110"],
    "x": ["1.5", "2", "2.5", "3"],
    "scr": ["133", "150", "177"],
    "egfr": ["30", "45", "60"],
    "hba1c": ["7.0", "7.5", "8.5", "10.0"],
    "fpg": ["7.0", "11.1", "13.3"],
    "inr": ["1.5", "2.0", "3.0"],
    "k": ["3.0", "3.5"],
    "ldl": ["1.8", "2.6", "4.9"],
    "alb": ["28", "30", "35"],
    # survival
    "surv": ["3个月", "6个月", "12个月", "12周"],
    "surv2": ["1个月", "2个月", "3个月", "半年"],
    "surv3": ["1年", "2年", "5年"],
    # pregnancy
    "contr_m": ["1个月", "2个月", "3个月", "6个月", "12个月"],
    "contr": ["宫内节育器", "避孕套", "口服避孕药", "皮下埋植剂"],
    # consent
    "agent": ["法定代理人", "监护人", "直系亲属"],
    "doc": ["知情同意书", "书面知情同意书", "纸质或电子知情同意书"],
}

PATTERNS = {
    "年龄": [
        "年龄{range}岁",
        "年龄在{range2}岁之间",
        "{p}年龄≥{adult}岁",
        "年龄＜{minor}岁",
        "年龄大于{old}周岁者",
        "年满{adult}周岁",
        "入组时年龄为{range}周岁",
        "未满{minor}周岁的未成年人",
        "{range2}周岁（含两端）",
        "年龄介于{range}岁（包括边界值）",
        "年龄超过{old}岁的高龄{p}",
        "未成年{p}，年龄{kids}岁",
        "年龄下限{adult}岁，上限不限",
        "首次发病时年龄不超过{old}岁",
        "筛选当日年龄不小于{adult}岁",
        "{old}岁以上的老年人",
        "{p}的年龄须在{range2}岁范围内",
        "学龄儿童，{school}岁",
        "成年人（≥{grown}岁）",
        "年龄不足{minor}岁或大于{old}岁",
        "按出生日期计算，已满{adult}周岁",
        "年龄要求：{range}岁",
        "小于{minor}岁的{p}不得入组",
        "{kids}岁的儿童",
        "年龄上限为{old}岁",
        "周岁年龄位于{range2}之间",
        "年纪在{old}岁及以下",
        "{adult}岁≤年龄≤{old}岁",
        "随机化时实足年龄{range}岁",
        "{p}年龄低于{minor}周岁或高于{old}周岁",
    ],
    "性别": [
        "{sex}",
        "性别：{sex}",
        "{sex}{who}",
        "仅限{sex}{who}",
        "性别不限",
        "男女不限",
        "男女均可",
        "{who}为{sex}",
        "性别为{sex}的{who}",
        "只招募{sex}{who}",
        "仅纳入{sex}",
        "{sex}，不接受其他性别的{who}",
        "本研究只入选{sex}{who}",
        "{who}性别须为{sex}",
        "生理性别为{sex}",
        "{sex}{who}不予入选",
        "男性或女性{who}",
        "男女兼有，单一性别不少于1/3",
        "出生时的性别登记为{sex}",
        "{who}性别不作限制",
        "身份证件上的性别为{sex}",
        "排除{sex}{who}",
        "不论男女",
        "健康{sex}",
        "{sex}{who}，人数不限",
        "男、女{who}均可入组",
        "{who}限{sex}",
        "该队列只接受{sex}{who}",
        "男女{who}各半",
        "性别是{sex}者",
        "非{sex}{who}",
        "{who}不分男女",
    ],
    "疾病": [
        "合并{cardiac}",
        "既往有{neuro}病史",
        "患有{chronic}的{p}",
        "伴有严重的{organ}疾病",
        "有{psych}病史者",
        "{p}患有{immune}",
        "存在活动性感染，如{infect}",
        "经病理确诊的{cancer}{p}",
        "{yr}内患过其他恶性肿瘤",
        "确诊为{gi}",
        "近{mo}内发生过{stroke}",
        "有出血倾向或{bleed}",
        "合并{eye}等眼部疾病",
        "未控制的{chronic}",
        "严重{organ}功能不全",
        "临床诊断为{immune}",
        "同时患有{infect}者",
        "{cardiac}或其他严重心血管疾病",
        "有{gi}病史的{p}",
        "继发于{renal}的肾损害",
        "{cns}、脑炎等中枢神经系统疾病",
        "符合{psych}的诊断标准",
        "目前患{infect}",
        "影像学证实的{stroke}",
        "已知的{bleed}等凝血障碍性疾病",
        "有{hered}家族史",
        "{cancer}，既往经组织学证实",
        "{yr}内有{attack}发作史",
        "病程在{yr}以上的{chronic}",
        "排除由{pain}引起的腹痛",
    ],
    "怀孕相关": [
        "妊娠期或哺乳期妇女",
        "孕妇及哺乳期女性",
        "计划在{contr_m}内怀孕的女性",
        "{trial}结束后{contr_m}内有生育计划者",
        "妊娠试验阳性者",
        "血清妊娠试验结果为阳性的{p}",
        "试验期间不愿采取避孕措施的育龄{p}",
        "同意在用药期间及停药后{contr_m}内避孕",
        "育龄女性须使用{contr}避孕",
        "已怀孕或准备在{contr_m}内怀孕的妇女",
        "哺乳期{p}",
        "孕周满{preg}周",
        "单胎妊娠，孕{preg}周以上",
        "多胎妊娠的孕妇",
        "近{contr_m}内有流产史的妇女",
        "育龄期女性，尿妊娠试验阴性",
        "有生育能力的{p}须采用{contr}等有效避孕方法",
        "产后{contr_m}内的妇女",
        "男性{p}的配偶计划在{contr_m}内怀孕",
        "正在备孕者",
        "末次给药后{contr_m}内仍需坚持避孕",
        "妊娠不足{preg}周",
        "既往分娩过1次以上的经产妇",
        "有{abort}次以上自然流产史",
        "绝经前妇女，未采取可靠的避孕措施",
        "处于孕{trimester}的妇女",
        "产妇产后仍在母乳喂养",
        "拒绝使用{contr}避孕的育龄夫妇",
        "{trial}期间有受孕可能的{p}",
        "不能保证停药后{contr_m}内不怀孕的妇女",
        "初产妇，足月妊娠",
    ],
    "过敏耐受": [
        "对{allergen}过敏者",
        "已知对{allergen2}过敏",
        "对试验药物或{allergen2}过敏的{p}",
        "过敏体质",
        "有{allergen}过敏史",
        "对{food}等多种食物过敏",
        "既往发生过{severe}等严重过敏反应",
        "对{allergen2}不能耐受的{p}",
        "对两种以上药物或食物过敏者",
        "曾因{allergen}引起{react}",
        "对{allergen}存在高敏反应",
        "有严重的药物过敏史",
        "{p}对{allergen2}或其辅料过敏",
        "{skin}皮试阳性",
        "有{food}过敏史者",
        "不能耐受{allergen2}",
        "对研究用药及其同类药物有超敏反应史",
        "{p}属高敏体质",
        "接触{allergen}后曾出现{react}",
        "疑似对{allergen2}过敏",
        "食用{food}后出现过{react}",
        "对生物制剂有{react}反应史",
        "曾因药物或食物发生{react}",
        "对静脉用{inject}耐受性差",
        "因过敏而禁用{allergic_drug}的{p}",
        "已知对{allergic_drug}及其衍生物高度敏感",
        "对人源化单克隆抗体有超敏反应",
        "有花粉、尘螨或{food}过敏史",
        "无{allergen}过敏史",
        "注射{inject}后出现过{react}者",
    ],
    "吸烟状况": [
        "吸烟者",
        "每日吸烟超过{cig}",
        "{pre}{mo}内平均每天吸烟多于{cig}",
        "目前吸烟且不愿戒烟的{p}",
        "从不吸烟",
        "戒烟时间不足{yr}",
        "已戒烟{yr}以上",
        "吸烟史≥{pack}包年",
        "吸烟指数大于{sindex}",
        "不能保证{smoke_p}不吸烟",
        "{smoke_p}无法停止使用烟草制品",
        "近{mo}内使用过电子烟",
        "吸烟史超过{yr}的{p}",
        "尿液可替宁（尼古丁）检测阳性的吸烟者",
        "现在吸烟，每天不少于{cig}",
        "嗜烟者，日均吸烟量≥{cig}",
        "长期被动吸烟者",
        "重度烟瘾，每天吸烟＞{cig}",
        "{pre}{hrs_abs}内吸过烟",
        "有{pack}年以上的吸烟史",
        "终生吸烟量少于100支",
        "{p}目前仍在吸卷烟",
        "{mo}内吸烟者或使用含尼古丁产品者",
        "既往吸烟，现已戒烟满{yr}",
        "尼古丁依赖者",
        "{smoke_p}每天抽烟不少于{cig}",
        "愿意在{smoke_p}戒烟",
        "不吸烟或{smoke_p}能够禁烟",
        "烟龄大于{pack}年",
        "{p}一天抽{cig}以上香烟",
    ],
    "酒精使用": [
        "酗酒者",
        "有酒精滥用史",
        "{pre}{mo2}内有酗酒史",
        "每周饮酒超过{unit}个标准单位",
        "每日饮酒折合酒精量＞{gram}",
        "{smoke_p}不能停止饮酒的{p}",
        "{pre}{hrs_abs}内饮过酒",
        "酒精呼气试验阳性",
        "长期大量饮酒，每天饮白酒超过{ml}",
        "酒精依赖{p}",
        "饮酒史超过{yr}",
        "无法在{smoke_p}禁酒者",
        "近{yr}内有酒精成瘾史",
        "平均每天酒精摄入量≥{gram}",
        "嗜酒{p}",
        "{p}日均饮用白酒{ml}以上",
        "筛选时酒精检测结果呈阳性",
        "每周饮酒量大于{unit}单位（1单位=360ml啤酒）",
        "{mo2}内经常饮酒，每周多于{unit}杯",
        "偶尔饮酒或不饮酒",
        "服药前{hrs_abs}内摄入过含酒精的饮料",
        "过去{yr}中存在过度饮酒",
        "不愿在{smoke_p}戒酒",
        "既往{mo2}内因醉酒就诊",
        "男性每天摄入乙醇超过{gram}",
        "每日饮高度酒≥{ml}",
        "已知的慢性酒精中毒",
        "{smoke_p}同意不饮用任何酒类",
        "酒龄长于{yr}，且几乎天天饮酒",
        "有酗酒的不良嗜好",
    ],
    "睡眠": [
        "每晚睡眠时间少于{hrs}小时",
        "入睡潜伏期＞{lat}分钟",
        "匹兹堡睡眠质量指数（PSQI）＞{psqi}分",
        "入睡困难，持续{mo}以上",
        "夜间觉醒次数≥{night}",
        "因倒班导致睡眠不规律的{p}",
        "睡眠质量差，持续超过{mo}",
        "有规律的睡眠习惯，每晚睡{hrs}小时以上",
        "早醒，比平时提前{lat}分钟以上",
        "总睡眠时间＜{hrs}小时",
        "主诉睡不着或睡不深，超过{mo}",
        "昼夜作息颠倒者",
        "每周至少3晚难以入睡",
        "多导睡眠图显示睡眠效率＜{eff}%",
        "存在睡眠障碍超过{mo}的{p}",
        "近{mo}内从事夜班工作，作息紊乱",
        "白天嗜睡，Epworth嗜睡量表＞{ess}分",
        "睡眠维持困难，每夜醒来{night}以上",
        "近{wk}内有跨时区旅行并影响睡眠",
        "{p}夜间睡眠不足{hrs}小时",
        "经常熬夜，{late}以后才入睡",
        "夜里醒后超过{lat}分钟不能再入睡",
        "失眠严重程度指数（ISI）≥{isi}分",
        "就寝时间在21点至{clock}点之间",
        "近{wk}睡眠日记显示平均入睡时间＞{lat}分钟",
        "打鼾并影响夜间睡眠的{p}",
        "多梦、易醒，病程{mo}以上",
        "每天午睡超过{lat}分钟",
        "睡眠时相延迟，起床时间晚于{wake}点",
        "近{mo}每周失眠不少于{night}",
    ],
    "知情同意": [
        "自愿参加{trial}并签署{doc}",
        "已签署{doc}",
        "{p}或其{agent}签署知情同意书",
        "不愿签署{doc}者",
        "能够理解并自愿签署{doc}",
        "{agent}同意其参加{trial}并签字",
        "拒绝签署{doc}",
        "充分知情后自愿参与{trial}",
        "由{agent}代为签署{doc}",
        "未能取得{p}或其{agent}的知情同意",
        "书面同意参加{trial}",
        "了解试验内容及风险，签署{doc}",
        "{p}本人知情同意，并由{agent}见证",
        "对{trial}内容知情，且自愿参加",
        "{p}签署{doc}并注明日期",
        "无法由本人或{agent}给出知情同意",
        "{agent}不同意{p}入组",
        "{p}同意参加{trial}，并已签名",
        "经{agent}知情同意",
        "获得伦理委员会批准的{doc}且已签字",
        "已获取{p}的{doc}",
        "在任何研究操作之前签署{doc}",
        "不能提供{doc}",
        "没有签署{doc}的{p}",
        "知晓并同意{trial}的全部流程",
        "{p}撤回知情同意",
        "{p}及{agent}均签署{doc}",
        "{p}或{agent}不愿意签字同意",
        "愿意并有能力给予书面知情同意",
        "口头同意，且{agent}在{doc}上签字",
        "未签或拒签{doc}",
        "{agent}了解研究目的并在同意书上签名",
        "已被告知{trial}的性质，并签署{doc}",
    ],
    "参与其它试验": [
        "{pre}{mo}内参加过其他临床试验",
        "正在参加其他药物临床试验的{p}",
        "近{mo}内曾作为受试者参加临床研究",
        "{wk}内参加过其他干预性临床试验",
        "同时参加另一项临床研究",
        "目前正在参与其他医疗器械的临床试验",
        "{p}在{mo}内入组过其他研究",
        "{day}内在其他试验中用过试验药",
        "{mo}内参加过任何药物或器械试验者",
        "既往参加过{trial}，后又退出",
        "参加其他临床试验，结束未满{wk}",
        "已经入选其他临床研究的{p}",
        "{pre}{day}内参加过别的临床试验",
        "距上一次临床试验末次给药不足{mo}",
        "计划在研究期间同时参加其他临床试验",
        "近{yr}内参加过疫苗临床试验",
        "过去{yr}中参加过3次及以上临床试验",
        "正在其他试验中接受研究用药的{p}",
        "{wk}内参加过其他新药研究",
        "本次筛选前{mo}内为其他临床试验的受试者",
        "尚处于另一临床试验随访期",
        "{trial}开始前{mo}内退出其他试验者",
        "同期参与其他研究项目",
        "近{mo}有临床试验参与史",
        "在其他临床研究中尚未出组的{p}",
        "{mo}内曾加入其他课题组的临床试验",
        "与其他临床试验的间隔少于{wk}",
        "未参加过其他临床研究，至少{mo}",
        "在过去{wk}内曾被纳入其他试验",
        "{p}已报名参加另一项介入性研究",
        "上一项临床试验结束至今未满{mo}",
    ],
    "治疗或手术": [
        "{pre}{mo}内接受过大手术",
        "既往行{surgery}",
        "有{surgery}史的{p}",
        "接受过{transplant}",
        "{wk}内接受过{radio}",
        "既往接受过{radio}的{p}",
        "正在接受{dialysis}治疗",
        "计划在研究期间进行择期手术",
        "{mo}内行{minor_op}",
        "近{wk}内接受过{physio}治疗",
        "需要长期{dialysis}的{p}",
        "拟行{surgery}",
        "既往曾接受根治性手术，距今超过{mo}",
        "{transplant}术后{p}",
        "接受过{minor_op}者",
        "既往放疗结束时间距入组不足{wk}",
        "{mo}内输注过全血或血液制品",
        "发病后已行{acute}",
        "术后{wk}内的{p}",
        "近{mo}进行过{physio}等理疗",
        "未接受过手术或放射治疗",
        "需行{carotid}的颈动脉狭窄{p}",
        "准备在{mo}内接受{transplant}",
        "在过去{yr}内做过{surgery}",
        "既往{yr}内有腹部手术史",
        "{pre}{wk}内曾做{radio}",
        "目前依靠机械通气的{p}",
        "需要家庭氧疗或无创通气治疗",
        "体内已植入心脏起搏器，植入满{mo}",
        "随访期内可能要做{minor_op}",
        "已完成{radio}，且满{wk}",
    ],
    "药物": [
        "{pre}{wk}内使用过{class}",
        "正在服用{anti}的{p}",
        "长期口服{platelet}",
        "{wk}内使用过{hormone}等糖皮质激素",
        "近{mo}内服用过{immsup}",
        "服用稳定剂量的{dm}至少{mo2}",
        "需要持续使用{class}的{p}",
        "目前正在使用{psydrug}",
        "{day}内使用过{abx}等抗菌药物",
        "正在使用{bp}且剂量未稳定",
        "服用{lipid}未满{wk}",
        "近{day}内使用过{cyp}强抑制剂",
        "{day}内服用过任何处方药或非处方药",
        "口服泼尼松每日超过{pred}mg",
        "{wk}内服用过中药或中成药",
        "同时使用{anti}与{platelet}",
        "{pre}{mo}内应用过{psydrug}",
        "既往{mo}内使用过胰岛素",
        "{p}近{wk}内静脉滴注过{abx}",
        "研究期间需合并使用{class}",
        "过去{mo}中规律应用{lipid}",
        "{day}内用过{cyp}诱导剂",
        "不能停用{class}者",
        "{mo}内使用过影响体重的药物",
        "当前药物方案中含{immsup}",
        "联合应用{dm}和{bp}",
        "需每日服用{platelet}的{p}",
        "正在注射低分子肝素或口服{anti}",
        "{wk}内服用维生素或保健品",
        "用过{psydrug}，停药时间不足{wk}",
        "从未使用过{dm}",
    ],
    "实验室检查": [
        "血小板计数＜{plt}×10^9/L",
        "中性粒细胞绝对值≥{neut}×10^9/L",
        "血红蛋白＜{hb}g/L",
        "ALT或AST＞正常值上限的{x}倍",
        "血清肌酐＞{scr}μmol/L",
        "肾小球滤过率＜{egfr}ml/min",
        "糖化血红蛋白（HbA1c）≥{hba1c}%",
        "空腹血糖＞{fpg}mmol/L",
        "国际标准化比值（INR）＞{inr}",
        "血钾＜{k}mmol/L",
        "低密度脂蛋白胆固醇≥{ldl}mmol/L",
        "总胆红素≤{x}倍正常值上限",
        "血清白蛋白≥{alb}g/L",
        "HBV DNA＞{dna}IU/ml",
        "乙肝表面抗原（HBsAg）检测阳性",
        "尿蛋白≥{prot}",
        "凝血酶原时间延长超过{pt}秒",
        "白细胞计数低于{wbc}×10^9/L",
        "甘油三酯高于{tg}mmol/L",
        "血尿酸＞{ua}μmol/L",
        "{p}的血肌酐超过正常上限{x}倍",
        "谷丙转氨酶高于正常值{x}倍以上",
        "内生肌酐清除率≥{egfr}ml/min",
        "Hb≥{hb}g/L，PLT≥{plt}×10^9/L",
        "C反应蛋白＞{crp}mg/L",
        "HIV抗体检测阳性",
        "糖化血红蛋白介于6.5%与{hba1c}%之间",
        "血常规示白细胞总数不足{wbc}×10^9/L",
        "24小时尿蛋白定量大于{prot24}g",
        "促甲状腺激素（TSH）＞{tsh}mIU/L",
        "NT-proBNP不低于{bnp}pg/ml",
    ],
    "预期寿命": [
        "预期寿命≥{surv}",
        "预计生存期大于{surv}",
        "预计生存时间不足{surv2}",
        "{p}的预期生存期超过{surv}",
        "估计生存期＜{surv2}",
        "预期寿命少于{surv3}",
        "预期生存时间在{surv}以上",
        "预计存活时间≥{surv}",
        "预期生存时间短于{surv2}的{p}",
        "研究者判断{p}的生存期至少{surv}",
        "预计寿命不足{surv3}",
        "生存预期＞{surv}",
        "预期可存活{surv}以上",
        "期望寿命不低于{surv3}",
        "估计{p}生存不到{surv2}",
        "预计剩余寿命＜{surv2}",
        "临终{p}，预计生存不超过{days}",
        "生命预期超过{surv}",
        "预计生存期：{surv}及以上",
        "预期寿命（从筛选之日起）≥{surv}",
        "预后极差，估计{days}内死亡",
        "随时可能死亡，预计存活不超过{days}",
        "预期存活期≤{surv2}",
        "预计总生存时间长于{surv}",
        "按病情估计，{p}还能生存{surv}以上",
        "经评估预期寿命＞{surv3}",
        "估计余生不足{surv3}",
        "预计能存活至少{surv}",
        "生存期预计小于{surv2}者",
        "根据病情判断，预期寿命短于{surv3}",
    ],
}

SLOTS.update(
    preg=["12", "16", "20", "24", "28", "34"],
    abort=["2", "3"],
    trimester=["早期", "中期", "晚期"],
    sindex=["200", "400", "600"],
    eff=["80", "85"],
    clock=["22", "23", "24"],
    late=["零点", "凌晨1点", "凌晨2点"],
    isi=["8", "10", "15"],
    ess=["10", "11", "12"],
    wake=["9", "10"],
    pred=["5", "7.5", "10", "20"],
    dna=["1000", "2000", "20000"],
    prot=["2+", "3+"],
    pt=["3", "4", "6"],
    wbc=["3.0", "3.5", "4.0"],
    tg=["2.3", "5.6"],
    ua=["420", "480", "540"],
    crp=["3", "10", "50"],
    prot24=["0.5", "1.0", "3.5"],
    tsh=["4.5", "10"],
    bnp=["300", "600", "900"],
    days=["24小时", "48小时", "72小时", "7天"],
)

PREFIXES = ["{n}.", "{n}、", "{n}）", "({n})", "（{n}）", "{n}. "]
ENDINGS = ["；", "。", "", "", ";"]


def fill(rng, pattern):
    """Every criterion the pattern can make, in a random order."""
    names = list(dict.fromkeys(re.findall(r"\{(\w+)\}", pattern)))
    varied = [n for n in names if n not in WORDING]
    combos = list(itertools.product(*(SLOTS[n] for n in varied)))
    rng.shuffle(combos)
    for combo in combos:
        values = dict(zip(varied, combo, strict=True))
        values.update({n: rng.choice(WORDING[n]) for n in names if n in WORDING})
        yield pattern.format(**values)


def quotas(total, names, start):
    """`total` split evenly over the names; the remainder goes round from `start`."""
    base, rest = divmod(total, len(names))
    extra = {names[(start + i) % len(names)] for i in range(rest)}
    return {name: base + (name in extra) for name in names}


def draw(rng, patterns, wanted, seen):
    """Take `wanted` new criteria, going round the patterns so that all are used."""
    sources = [fill(rng, p) for p in patterns]
    rng.shuffle(sources)
    out = []
    while len(out) < wanted:
        if not sources:
            raise ValueError("the patterns are used up: " + patterns[0])
        for source in list(sources):
            if len(out) == wanted:
                break
            text = next((t for t in source if t not in seen), None)
            if text is None:
                sources.remove(source)
                continue
            seen.add(text)
            out.append(text)
    return out


def decorate(rng, text):
    """Number a part of the criteria and end them as protocols do."""
    if rng.random() < 0.5:
        prefix = rng.choice(PREFIXES).format(n=rng.randint(1, 16))
        if prefix.endswith(".") and text[0].isdigit():
            prefix += " "  # "4. 2周内", for "4.2周内" reads as a number
        text = prefix + text
    return text + rng.choice(ENDINGS)


def generate():
    rng = random.Random(SEED)
    names = list(PATTERNS)
    quota = {
        "train": quotas(SIZES["train"], names, 0),
        "dev": quotas(SIZES["dev"], names, 4),
        "test": quotas(SIZES["test"], names, 9),
    }
    pools = {split: [] for split in SIZES}
    seen = set()
    for name in names:
        patterns = list(PATTERNS[name])
        rng.shuffle(patterns)
        held = {"dev": patterns[:HELD_OUT], "test": patterns[HELD_OUT : 2 * HELD_OUT]}
        common = patterns[2 * HELD_OUT :]
        counts = {split: quota[split][name] for split in SIZES}
        own = {}
        for split in ("dev", "test"):
            # A pattern without slots gives one row, so this can be fewer than asked for.
            room = sum(1 for p in held[split] for _ in fill(random.Random(0), p))
            own[split] = draw(rng, held[split], min(HELD_OUT, room), seen)
        wanted = [counts["train"]] + [counts[s] - len(own[s]) for s in ("dev", "test")]
        texts = draw(rng, common, sum(wanted), seen)
        shared = texts[wanted[0] :]
        pools["train"] += [(t, name) for t in texts[: wanted[0]]]
        pools["dev"] += [(t, name) for t in own["dev"] + shared[: wanted[1]]]
        pools["test"] += [(t, name) for t in own["test"] + shared[wanted[1] :]]

    for split, pool in pools.items():
        rng.shuffle(pool)
        rows = []
        for i, (text, name) in enumerate(pool, 1):
            others = rng.sample([n for n in names if n != name], NUM_CHOICES - 1)
            choices = [*others, name]
            rng.shuffle(choices)
            prompt = rng.choice(PROMPTS)
            rows.append(
                {
                    "input": prompt.format(c=decorate(rng, text), o="，".join(choices)),
                    "target": name,
                    "answer_choices": choices,
                    "task_type": "cls",
                    "task_dataset": "CHIP-CTC",
                    "sample_id": f"{split}-{i}",
                }
            )
        yield split, rows


def main():
    folder = Path(__file__).resolve().parent
    for split, rows in generate():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with open(folder / f"{split}.json", "w", encoding="utf-8", newline="\n") as f:
            f.write(text)


if __name__ == "__main__":
    main()
