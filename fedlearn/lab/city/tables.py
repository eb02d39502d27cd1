"""What the simulated city is made of: dishes, themes, facilities and the parts of names, each in Chinese and English.

All entries are common words or our own inventions; no data set was copied.
"""

from __future__ import annotations

from typing import NamedTuple


class Term(NamedTuple):
    """One value as it may be said in either language."""

    zh: str
    en: str


class Cuisine(NamedTuple):
    """A cuisine, its dishes in falling order of fame, and the usual price of a meal per head."""

    name: Term
    price: float
    dishes: tuple[Term, ...]


def _dishes(text: str) -> tuple[Term, ...]:
    return tuple(Term(*(part.strip() for part in row.split("|"))) for row in text.split(";"))


CUISINES: tuple[Cuisine, ...] = (
    Cuisine(
        Term("川菜", "Sichuan"),
        80,
        _dishes(
            "麻婆豆腐|mapo tofu;水煮鱼|boiled fish in chili oil;麻辣火锅|mala hotpot;宫保鸡丁|kung pao chicken;"
            "回锅肉|twice-cooked pork;夫妻肺片|sliced beef in chili sauce;担担面|dandan noodles;"
            "口水鸡|mouthwatering chicken"
        ),
    ),
    Cuisine(
        Term("粤菜", "Cantonese"),
        130,
        _dishes(
            "白切鸡|white cut chicken;虾饺|shrimp dumplings;叉烧|char siu;清蒸石斑|steamed grouper;"
            "煲仔饭|claypot rice;烧鹅|roast goose;云吞面|wonton noodles;肠粉|rice noodle rolls"
        ),
    ),
    Cuisine(
        Term("湘菜", "Hunan"),
        75,
        _dishes(
            "剁椒鱼头|chopped pepper fish head;小炒黄牛肉|stir-fried yellow beef;毛氏红烧肉|red-braised pork;"
            "臭豆腐|stinky tofu;农家小炒肉|farmhouse pork;口味虾|spicy crayfish;腊味合蒸|steamed cured meats;"
            "米粉|rice vermicelli"
        ),
    ),
    Cuisine(
        Term("江浙菜", "Jiangnan"),
        120,
        _dishes(
            "东坡肉|dongpo pork;龙井虾仁|longjing prawns;西湖醋鱼|vinegar fish;小笼包|soup dumplings;"
            "叫花鸡|beggar's chicken;蟹粉狮子头|crab meatballs;腌笃鲜|bamboo shoot soup;葱油拌面|scallion oil noodles"
        ),
    ),
    Cuisine(
        Term("西北菜", "Northwestern"),
        65,
        _dishes(
            "羊肉泡馍|lamb paomo;大盘鸡|big plate chicken;肉夹馍|roujiamo;手抓饭|pilaf;"
            "烤羊排|roast lamb ribs;油泼面|chili oil biangbiang;凉皮|liangpi;馕坑肉|tandoor mutton"
        ),
    ),
    Cuisine(
        Term("东北菜", "Northeastern"),
        60,
        _dishes(
            "锅包肉|crispy sweet pork;地三鲜|eggplant and potato;小鸡炖蘑菇|chicken with mushrooms;"
            "酸菜白肉|sauerkraut pork stew;"
            "铁锅炖大鹅|iron pot goose;酱骨架|soy pork bones;猪肉水饺|pork jiaozi;拔丝地瓜|candied sweet potato"
        ),
    ),
    Cuisine(
        Term("日料", "Japanese"),
        180,
        _dishes(
            "寿司|sushi;刺身|sashimi;豚骨拉面|tonkotsu ramen;鳗鱼饭|unagi rice;天妇罗|tempura;"
            "寿喜烧|sukiyaki;烤鸡串|yakitori;乌冬|udon"
        ),
    ),
    Cuisine(
        Term("韩餐", "Korean"),
        95,
        _dishes(
            "石锅拌饭|bibimbap;泡菜汤|kimchi soup;部队锅|army stew;韩式炸鸡|fried chicken wings;"
            "冷面|cold noodles;烤五花|grilled pork belly;辣炒年糕|tteokbokki;参鸡汤|ginseng chicken"
        ),
    ),
    Cuisine(
        Term("泰餐", "Thai"),
        110,
        _dishes(
            "冬阴功|tom yum;绿咖喱鸡|green curry;菠萝炒饭|pineapple rice;泰式炒河粉|pad thai;"
            "青木瓜沙拉|papaya salad;咖喱蟹|curry crab;芒果糯米|mango sticky rice;香茅烤鱼|lemongrass fish"
        ),
    ),
    Cuisine(
        Term("意餐", "Italian"),
        160,
        _dishes(
            "玛格丽特披萨|margherita pizza;肉酱意面|bolognese;千层面|lasagne;烩饭|risotto;"
            "提拉米苏|tiramisu;培根蛋面|carbonara;生牛肉片|carpaccio;海鲜意面|seafood linguine"
        ),
    ),
    Cuisine(
        Term("法餐", "French"),
        260,
        _dishes(
            "油封鸭|duck confit;法式焗蜗牛|escargots;洋葱浓汤|onion gratin soup;红酒炖牛肉|beef bourguignon;"
            "鹅肝|foie gras;马赛鱼汤|bouillabaisse;可丽饼|crepes;焦糖布丁|creme brulee"
        ),
    ),
    Cuisine(
        Term("印度菜", "Indian"),
        90,
        _dishes(
            "黄油鸡|butter chicken;玛莎拉羊肉|lamb masala;坦都里烤鸡|tandoori chicken;印度飞饼|roti paratha;"
            "菠菜奶酪|palak paneer;香料炒饭|biryani;咖喱角|samosa;扁豆汤|dal tadka"
        ),
    ),
)

NICKNAMES: dict[str, Term] = {
    "麻婆豆腐": Term("那道麻麻辣辣的嫩块块", "that numbing bean curd"),
    "麻辣火锅": Term("涮锅子", "the bubbling red pot"),
    "小笼包": Term("一口爆汁的小包包", "those tiny buns that squirt"),
    "虾饺": Term("水晶皮的早茶点心", "the see-through yum cha parcels"),
    "剁椒鱼头": Term("红彤彤的大胖头", "the big red noggin platter"),
    "羊肉泡馍": Term("掰饼泡汤那个", "torn flatbread in broth"),
    "锅包肉": Term("酸甜酥脆的大肉片", "sweet and sour crunchy slices"),
    "寿司": Term("醋饭捏的小卷卷", "raw bites on vinegared grains"),
    "石锅拌饭": Term("滋滋响的大碗拌拌", "the sizzling mixed bowl"),
    "冬阴功": Term("酸辣椰香汤", "that sour coconut broth"),
    "玛格丽特披萨": Term("番茄芝士大圆饼", "a cheesy tomato pie"),
    "油封鸭": Term("慢慢油浸的腿", "the slow-cooked leg thing"),
    "黄油鸡": Term("橙红色浓浓酱汁那个鸡", "the creamy orange one with naan"),
}
"""Ways to mean a famous dish without a word of the catalogue."""

_SOUNDS = (
    "想像 吃迟 附负 近进 评平 在再 的得 家加 豆逗 鱼渔 面麵 鸡机 虾瞎 汤烫 饭反 菜才 牛妞 羊洋 鸭呀 粉份 烤考 炒吵 "
    "有友 车撤 位为 店电 好号 贵跪 周州 边编 点典 均军 人仁 找早 馋缠 酸蒜 咖卡"
)
HOMOPHONES: dict[str, str] = {pair[0]: pair[1] for pair in _SOUNDS.split()}
"""What slips in when a Chinese character is typed by its sound."""


class Group(NamedTuple):
    """A vague way to mean any of several cuisines; its words are not in the catalogue."""

    cuisines: tuple[int, ...]
    zh: tuple[str, ...]
    en: tuple[str, ...]


GROUPS: tuple[Group, ...] = (
    Group((0, 2, 8, 11), ("越辣越过瘾的", "让人冒汗的"), ("something fiery", "stuff that makes me sweat")),
    Group((1, 3, 6), ("清淡些的", "不油腻的"), ("something light", "a delicate meal")),
    Group((4, 5, 7), ("暖和顶饱的", "实在管饱的"), ("something hearty", "a filling warm meal")),
    Group((9, 10), ("用刀叉的", "洋气的西式"), ("knife and fork stuff", "something from Europe")),
)

THEMES: tuple[Term, ...] = (
    Term("历史", "history"),
    Term("音乐", "music"),
    Term("园林", "gardens"),
    Term("艺术", "art"),
    Term("运动", "sports"),
    Term("科幻", "science fiction"),
)
FACILITIES: tuple[Term, ...] = (
    Term("无线网络", "wifi"),
    Term("停车位", "parking"),
    Term("包间", "private room"),
    Term("露天座位", "outdoor seating"),
    Term("儿童座椅", "high chairs"),
    Term("外卖", "takeaway"),
    Term("宠物友好", "pet friendly"),
    Term("充电宝", "power bank"),
)
TYPES: tuple[Term, ...] = (
    Term("老字号", "heritage house"),
    Term("连锁店", "chain"),
    Term("路边摊", "street stall"),
    Term("私房菜", "supper club"),
    Term("餐吧", "bistro"),
)
TYPE_PRICE: tuple[float, ...] = (1.1, 0.9, 0.6, 1.6, 1.1)

PRICE_EDGES: tuple[int, ...] = (0, 50, 100, 150, 250)
"""Lower edges of the price bands, per head; the last band is open."""
FLOORS: tuple[float, ...] = (4.0, 4.5)
"""Rating floors people ask for."""

_SYLLABLES = (
    "青qing 竹zhu 云yun 月yue 松song 鹤he 雁yan 泉quan 桐tong 棠tang 溪xi 岚lan 星xing 霞xia 舟zhou 桥qiao "
    "枫feng 荷he 梅mei 柳liu 燕yan 鹿lu 雪xue 露lu 霜shuang 虹hong 帆fan 钟zhong 琴qin 墨mo 玉yu 瑶yao "
    "朗lang 晴qing 宁ning 和he 福fu 顺shun 兴xing 昌chang"
)
SYLLABLES: tuple[tuple[str, str], ...] = tuple((pair[0], pair[1:]) for pair in _SYLLABLES.split())
SUFFIXES: tuple[Term, ...] = (
    Term("小馆", "Kitchen"),
    Term("坊", "House"),
    Term("轩", "Court"),
    Term("居", "Place"),
    Term("阁", "Pavilion"),
    Term("楼", "Tower"),
    Term("堂", "Hall"),
    Term("记", "Corner"),
)


class AppKind(NamedTuple):
    """A content app: its domain, and the words an item of it is named with."""

    app: str
    domain: str
    words: tuple[Term, ...]


CONTENT_APPS: tuple[AppKind, ...] = (
    AppKind("books", "book", (Term("手记", "Notes"), Term("漫谈", "Essays"), Term("入门", "Primer"))),
    AppKind("clips", "clip", (Term("短片", "Reel"), Term("日志", "Vlog"), Term("直击", "Live"))),
    AppKind("shop", "product", (Term("礼盒", "Gift Box"), Term("周边", "Merch"), Term("套装", "Kit"))),
)
SIGHTS: tuple[Term, ...] = (
    Term("公园", "Park"),
    Term("馆", "Museum"),
    Term("广场", "Square"),
    Term("塔", "Pagoda"),
    Term("湖", "Lake"),
)
