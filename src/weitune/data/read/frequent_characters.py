"""The most frequent characters of languages, by which :mod:`.encoding_scores` recognises text in them.

The lists are short on purpose: these characters make up more than half of any text in the language, but only about a
tenth of letters drawn at random.
"""

from __future__ import annotations

HANZI = frozenset(
    # frequent in modern text
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多"
    "经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性"
    "知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次"
    "度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建"
    "务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路"
    "记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运"
    # of dialogues and instructions
    "吗呢吧啊呀请谢您谁哪怎喜欢爱找快慢吃喝买写读字句词语例案单简帮答近些每跟越晚早久网址址户岁钱笔"
    # the same in traditional characters
    "這個們來為國說時會對過發後裡裏種經麼學現當沒動還進樣開從實軍無與長機將兩間問應戰向頭體見產話給門員處義條氣題爾別變總電數報"
    "結務場計資統區隊決馬許請謝誰嗎歡愛買寫讀詞語單簡難權達記類據邊張該規萬術領確師觀讓識帶導爭運傳書聽卻點關業幾認兒東聲論點嗎"
    # of names
    "张王李赵陈杨吴刘黄周徐孙朱胡林郭罗郑梁宋唐邓冯韩曹曾彭萧蔡潘董袁余叶蒋杜苏魏吕丁沈姚卢傅钟姜崔谭范汪陆戴夏秦江"
    "伟芳娜静敏磊刚洋艳勇杰娟涛超秀霞燕玲丽桂兰英华玉梅红陳張劉楊趙黃吳孫鄭羅"
    # of classical texts
    "曰乎矣哉吾汝此彼夫焉豈岂乃遂亦故若皆君臣故未欲莫孰兮耶"
)

HANGUL = frozenset(
    "이다는을가에의은하고지로도한기리사인아그나자어서를니대시들으해있보라주전정부여게수구일스요원장상모제조안동신용것등만세과거마"
    "야오우무문비치공관건적경교학국성진당선방면때까와했였습세요네저제떻게무엇무슨왜언제디누군좋말되내생각알려줘주십니까"
)
THAI = frozenset("านรอกเงมยลวดตสทบคหปไใ่้ีัิำุแข")
CYRILLIC = frozenset("оеаинтсрвлкм")
GREEK = frozenset("αοιετσνηυρκςάίόέ")
ARABIC = frozenset("المينروتبهعد")
HEBREW = frozenset("יוהלאתמרשנ")
WESTERN = frozenset("éèêëàâäáãåæçñóòôöøœíîïúùûüßÉÀÈÇÄÖÜÅÑÁÓÍÚ’‘“”–—…«»°€¿¡±½¼¾²³µ£§×·®©™")
CENTRAL = frozenset("ąćęłńóśźżĄĆĘŁŃÓŚŹŻáčďéěíňřšťúůýžÁČĎÉĚÍŇŘŠŤÚŮÝŽőűăâîşţ’‘“”„–—…")
TURKISH = frozenset("çğıİöşüÇĞÖŞÜâîû’‘“”–—…")
