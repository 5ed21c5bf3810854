"""The things that the demo model knows, by name.

Each entry is ``label``, or ``label=name/other name``: the label finds the artwork in the emoji list, the names are the
words that captions use. The first name is the one shown in lists. A name with a colour in it takes no other colour.
"""

from __future__ import annotations

from dataclasses import dataclass

_TABLE: dict[str, str] = {
    "animals": """
        monkey face|gorilla|dog face=dog face/puppy face|dog|poodle|wolf=wolf/wolf face|fox=fox/fox face|raccoon|
        cat face=cat face/kitten face|cat|black cat|lion=lion/lion face|tiger face|tiger|horse face|horse|unicorn|
        zebra|deer|bison|cow face|cow|pig face|pig|ram|goat|camel|giraffe|elephant|rhinoceros=rhinoceros/rhino|
        hippopotamus=hippopotamus/hippo|mouse face|rabbit face=rabbit face/bunny face|rabbit=rabbit/bunny|hedgehog|
        bat|bear=bear/bear face|polar bear|koala=koala/koala face|panda=panda/panda face|sloth|otter|kangaroo|turkey|
        chicken=chicken/hen face|rooster|baby chick=baby chick/chick|hatching chick|bird|penguin|dove|eagle|duck|swan|
        owl|flamingo|peacock|parrot|frog=frog/frog face|crocodile|turtle=turtle/tortoise|lizard|snake|dragon|
        sauropod=sauropod/brontosaurus|T-Rex=dinosaur/t rex|spouting whale=spouting whale/whale|dolphin|fish|
        tropical fish|blowfish=blowfish/pufferfish|shark|octopus|crab|lobster|shrimp|squid|snail|butterfly|
        bug=caterpillar/bug|ant|honeybee=bee/honeybee|lady beetle=ladybug/ladybird|spider|scorpion|bouquet|
        cherry blossom|rose|hibiscus|sunflower|tulip|seedling|evergreen tree=pine tree/evergreen tree|
        deciduous tree=tree/leafy tree|palm tree|cactus|four leaf clover|maple leaf|mushroom=mushroom/toadstool|
        spiral shell=sea shell/spiral shell
    """,
    "food": """
        grapes|melon|watermelon|tangerine=orange/tangerine|lemon|banana|pineapple|mango|red apple=apple/red apple|
        green apple|pear|peach|cherries=cherries/two cherries|strawberry|blueberries|kiwi fruit|tomato|coconut|
        avocado|eggplant=eggplant/aubergine|potato|carrot|ear of corn=corn/ear of corn|
        hot pepper=hot pepper/chili pepper|cucumber|broccoli|garlic|onion|peanuts|bread=bread/loaf of bread|croissant|
        baguette bread=baguette|pretzel|bagel|pancakes|waffle|cheese wedge=cheese/wedge of cheese|meat on bone|
        poultry leg=chicken leg/drumstick|bacon|hamburger=hamburger/burger|french fries=french fries/fries|
        pizza=pizza/slice of pizza|hot dog|sandwich|taco|burrito|egg|cooking=fried egg/frying pan|green salad*=salad|
        popcorn|cooked rice=bowl of rice|steaming bowl=bowl of noodles/ramen|spaghetti|sushi|dumpling|soft ice cream|
        ice cream=ice cream/bowl of ice cream|doughnut=doughnut/donut|cookie|birthday cake|
        shortcake=piece of cake/shortcake|cupcake|pie|chocolate bar=chocolate/chocolate bar|candy|lollipop|
        honey pot=honey/honey pot|glass of milk=milk/glass of milk|hot beverage=cup of coffee/coffee|teapot|
        wine glass=wine glass/glass of wine|cocktail glass=cocktail|beer mug=beer/mug of beer|
        cup with straw=soda/cup with straw
    """,
    "faces": """
        grinning face=smiling face/happy face|face with tears of joy=laughing face/face with tears of joy|
        winking face|smiling face with heart-eyes=face in love/face with heart eyes|thinking face|sleeping face|
        cowboy hat face=cowboy/cowboy face|partying face=party face|
        smiling face with sunglasses=cool face/face with sunglasses|nerd face|loudly crying face=crying face/sad face|
        enraged face*=angry face|skull|pile of poo=poop|clown face=clown/clown face|ogre|ghost|alien=alien/alien face|
        alien monster=space invader/alien monster|robot=robot/robot face|red heart=heart/red heart|broken heart|
        baby=baby/baby face|Santa Claus=santa/santa claus|thumbs up|waving hand=hand/waving hand|eye|brain|tooth|bone|
        footprints
    """,
    "objects": """
        jack-o-lantern=halloween pumpkin/jack o lantern|Christmas tree|balloon|wrapped gift=gift/present|trophy|
        soccer ball=soccer ball/football|baseball|basketball|volleyball|tennis=tennis racket/tennis|
        bullseye=target/bullseye|kite|video game=game controller/gamepad|game die=dice|teddy bear|
        artist palette=paint palette/palette|crystal ball|glasses|sunglasses|t-shirt=t shirt/shirt|
        jeans=jeans/trousers|socks|dress|handbag|backpack|running shoe=sneaker/running shoe|
        high-heeled shoe=high heel|crown|top hat|ring=ring/diamond ring|gem stone=diamond/gem|bell|musical note|
        microphone|headphone=headphones|trumpet|guitar|violin|drum|mobile phone=phone/mobile phone|battery|laptop|
        floppy disk|television=television/tv|camera|candle|light bulb|books|coin|money bag|envelope=envelope/letter|
        pencil|scissors|locked=padlock/lock|key|hammer|axe|bomb|shield|gear=gear/cogwheel|magnet|telescope|pill|door|
        chair|broom|alarm clock|watch=watch/wrist watch|hourglass done=hourglass|umbrella|anchor
    """,
    "places": """
        mountain|volcano|desert island=island/desert island|beach with umbrella=beach|house|hospital|school|factory|
        castle|church|tent|fountain|Statue of Liberty|Tokyo tower|cityscape=city|sunrise|ferris wheel|roller coaster
    """,
    "vehicles and sky": """
        locomotive=steam train/locomotive|bus|ambulance|fire engine=fire truck|police car|taxi|
        automobile=car/automobile|tractor|racing car=race car/racing car|motorcycle=motorcycle/motorbike|
        bicycle=bicycle/bike|sailboat=sailboat/sailing boat|ship|airplane=airplane/plane|helicopter|rocket|
        flying saucer=ufo/flying saucer|sun|crescent moon=moon/crescent moon|full moon|ringed planet=planet/saturn|
        star|cloud|rainbow|snowflake|snowman|fire=fire/flame|droplet=water drop/drop|water wave=wave|tornado|
        high voltage=lightning/lightning bolt
    """,
}
_NO_ARTICLE = frozenset(
    "grapes cherries blueberries peanuts bread pancakes bacon popcorn sushi spaghetti chocolate honey milk glasses "
    "sunglasses jeans socks headphones books scissors footprints fire lightning french-fries".replace("-", " ").split()
) | {"french fries", "bowl of noodles", "two cherries", "fries", "coffee", "beer", "santa", "santa claus", "ramen"}
_COLOUR_WORDS = frozenset(["red", "green", "black"])


@dataclass(frozen=True)
class Thing:
    """One thing that can be drawn: its artwork label, the names captions use, its group."""

    label: str
    names: tuple[str, ...]
    group: str
    tintable: bool

    @property
    def name(self) -> str:
        """Return the name that lists show."""
        return self.names[0]


def with_article(noun: str, head: str | None = None) -> str:
    """Return ``noun`` with "a" or "an" before it, unless the thing called ``head`` takes none."""
    if (head or noun) in _NO_ARTICLE:
        return noun
    return ("an " if noun[0] in "aeio" or noun.startswith(("umbrella", "unshaded")) else "a ") + noun


def _parse(entry: str, group: str) -> Thing:
    label, _, names = entry.strip().partition("=")
    tintable = not label.endswith("*")
    label = label.removesuffix("*")
    listed = tuple(name.strip() for name in names.split("/")) if names else (label.lower(),)
    return Thing(label, listed, group, tintable and not _COLOUR_WORDS & set(listed[0].split()))


THINGS: tuple[Thing, ...] = tuple(
    _parse(entry, group)
    for group, table in _TABLE.items()
    for entry in " ".join(table.split()).split("|")
    if entry.strip()
)
