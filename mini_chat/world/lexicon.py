"""Everything the world contains, each thing with its English and its Chinese form, one to one.

The lists are short on purpose: a model of three million parameters has to learn each word from a few thousand
sentences. No Chinese form is part of another one of the same kind, so that the exam can look for a value as a string.
"""

from __future__ import annotations

from typing import NamedTuple

LANGUAGES = ("en", "zh")
ASSISTANT = "Mini-Chat"


def other(language: str) -> str:
    """The language that `language` is not."""
    return "zh" if language == "en" else "en"


class Thing(NamedTuple):
    """A word of the world: its two forms and, where it can be counted, its Chinese measure word."""

    en: str
    zh: str
    measure: str = ""

    def name(self, language: str) -> str:
        return self.en if language == "en" else self.zh

    def one(self, language: str, colour: Thing | None = None) -> str:
        """`a red cat` or `一只红色的猫`."""
        if language == "zh":
            return f"一{self.measure}{colour.zh + '的' if colour else ''}{self.zh}"
        words = f"{colour.en} {self.en}" if colour else self.en
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def many(self, language: str, count: int) -> str:
        """`3 cats` or `3只猫`."""
        if language == "zh":
            return f"{count}{self.measure}{self.zh}"
        return f"{count} {self.en if count == 1 else self.plural}"

    @property
    def plural(self) -> str:
        return self.en + "s"


def _things(table: str) -> tuple[Thing, ...]:
    return tuple(Thing(*entry.split()) for entry in table.strip().split(","))


PEOPLE = _things(
    "Tom 汤姆, Jack 杰克, Mike 麦克, Sam 山姆, David 大卫, Peter 彼得, Leo 里奥, Paul 保罗, Henry 亨利, "
    "Eric 艾瑞, Wei 小伟, Ming 小明, Anna 安娜, Lucy 露西, Mary 玛丽, Emma 艾玛, Kate 凯特, Lily 莉莉, "
    "Jenny 珍妮, Rose 罗丝, Sara 莎拉, Nina 妮娜, Mei 小美, Hong 小红"
)
ANIMALS = _things(
    "cat 猫 只, dog 狗 只, bird 鸟 只, rabbit 兔子 只, horse 马 匹, duck 鸭子 只, pig 猪 头, cow 牛 头, "
    "frog 青蛙 只, goat 山羊 只, monkey 猴子 只, turtle 乌龟 只"
)
OBJECTS = _things(
    "ball 球 个, book 书 本, bag 袋子 个, hat 帽子 顶, cup 杯子 个, pen 笔 支, bowl 碗 个, key 钥匙 把, "
    "chair 椅子 把, umbrella 雨伞 把, lamp 灯 盏, kite 风筝 只, coat 外套 件, boat 小船 条"
)
PLACES = _things(
    "park 公园, shop 商店, school 学校, library 图书馆, station 车站, market 市场, beach 海滩, zoo 动物园, "
    "museum 博物馆, garden 花园"
)
TOWNS = _things(
    "Lakeside 湖镇, Hillton 山镇, Riverton 河镇, Seaview 海镇, Rosedale 花镇, Stonewell 石镇, Greenwood 林镇, "
    "Snowfield 雪镇"
)
COLOURS = _things("red 红色, blue 蓝色, green 绿色, yellow 黄色, black 黑色, white 白色, brown 棕色, purple 紫色")
FOODS = _things(
    "rice 米饭, bread 面包, cheese 奶酪, cake 蛋糕, honey 蜂蜜, chocolate 巧克力, corn 玉米, salad 沙拉, "
    "tofu 豆腐, jam 果酱"
)
JOBS = _things("teacher 老师, doctor 医生, farmer 农民, cook 厨师, driver 司机, painter 画家, singer 歌手, nurse 护士")
BOTS = _things(
    "Nova 诺娃, Pico 皮可, Luma 路玛, Kiko 奇可, Tara 塔拉, Vega 维加, Bolt 博特, Echo 回声, Juno 朱诺, "
    "Milo 米洛, Rex 雷克, Suki 苏琪, Dora 多拉, Halo 光环, Yoyo 悠悠, Fixi 菲希"
)
PET_NAMES = _things(
    "Pip 皮皮, Mimi 咪咪, Coco 可可, Lulu 露露, Dudu 嘟嘟, Bobo 波波, Nini 妮妮, Toto 托托, Momo 沫沫, "
    "Kiki 奇奇, Fifi 菲菲, Gigi 吉吉"
)
# Names of nobody. Every half is met in training, in answers that admit to knowing no such person; the exam's pairs
# are not.
STRANGE_FIRST = _things(
    "Zelmo 泽莫, Braxi 布希, Tindo 丁朵, Quorin 阔林, Velka 韦卡, Drumi 杜米, Fenza 芬扎, Gorlo 戈洛, Hexi 赫西, "
    "Jubal 朱巴, Krona 克罗, Lumpi 伦皮, Morva 莫瓦, Nimbo 宁博, Oztek 奥泰, Plini 普尼, Rubo 鲁博, Sturmi 斯图, "
    "Wexal 韦沙, Yarvo 雅沃"
)
STRANGE_LAST = _things(
    "Tarsk 塔斯, Vonde 冯德, Kandor 康多, Belzu 贝祖, Crimp 克林, Dorvin 道文, Fluge 弗格, Grint 格林, "
    "Hobbel 霍贝, Jask 贾克, Klem 克莱, Lorbu 洛布, Mizzo 米佐, Nurgal 努加, Pontik 庞蒂, Quall 夸尔, "
    "Rendo 伦多, Skib 斯基, Trogan 特甘, Zupp 祖普"
)
