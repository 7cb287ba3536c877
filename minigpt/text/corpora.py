"""Texts to train on: stories from a grammar, whose entropy is known exactly, and readers for the texts in data/ and your own.

STORIES is a Grammar (see grammar.py) of children's stories. Each introduces a child, an animal friend, a thing, a place and
a kind of weather, and every one of them comes back: what was carried to the pond is lost at the pond, the girl stays "she", the
marbles stay "they", the rainy day ends in soaked sleeves. Each return costs 0 bits to whoever remembers, so a model's gap to
STORIES.entropy() is what it failed to learn.

Not here: tokens (tokenizers.py), and tinyshakespeare, which `python data/get.py` fetches.
"""
from pathlib import Path

from minigpt.files import read_text
from minigpt.text.grammar import Grammar, alike

DATA = Path(__file__).parents[2] / "data"
PROSE = ("tales.txt", "letters.txt", "howto.txt", "dialogue.txt")

# Who and what the stories are about. A feature of a value is a word that agreement, or the plot, will ask for later.

SHE, HE = {"he": "she", "him": "her", "his": "her"}, {"he": "he", "him": "him", "his": "his"}
IT = {"it": "it", "them": "it", "is": "is", "was": "was", "belongs": "belongs"}
THEY = {"it": "they", "them": "them", "is": "are", "was": "were", "belongs": "belong"}
GIRL = alike("Ada Alice Anna Clara Ella Emma Flora Grace Ida Ivy Jane Kate Lea Lily Lucy Marta Mia Nora Paula Rosa Sara Stella "
             "Vera Yara", **SHE)
BOY = alike("Adam Arno Bruno Daniel Diego Erik Finn George Hugo Jack Jim Juan Lars Luca Max Nico Oscar Paul Peter Rolf Simon "
            "Tito Victor Yusuf", **HE)

POOLS = {
    "GIRL": GIRL, "BOY": BOY, "NAME": GIRL | BOY,
    "HELPER": alike("actress aunt gardener lady nurse princess queen woman", **SHE)
    | alike("baker fisherman king knight man postman sailor uncle", **HE),
    "PET": alike("Acorn Bingo Bramble Bumble Chips Cocoa Crumb Domino Dumpling Ginger Hazel Jumbo Mango Mittens Muffin Nugget "
                 "Olive Peanut Pepper Pip Pocket Pudding Rocket Scout Snowball Sparky Spud Sunny Tickle Truffle Waffle Wobble"),
    "ANIMAL": {animal: {"said": said, "ran": ran, "food": food} for animal, said, ran, food in map(str.split, (
        "badger grunted lumbered potatoes, cat purred strolled milk, dog barked bounded bones, duck quacked waddled peas, "
        "frog croaked hopped flies, goose honked waddled grass, hedgehog snuffled scurried beetles, horse neighed trotted "
        "oats, lamb bleated skipped clover, monkey chattered swung bananas, otter whistled scurried trout, panda hummed "
        "rolled bamboo, penguin squawked waddled sardines, pony neighed trotted carrots, rabbit snuffled hopped radishes, "
        "robin chirped flew crumbs, sheep bleated plodded grass, spider hummed scuttled flies, swan hissed waddled reeds, "
        "wolf howled padded sausages").split(", "))},
    "ONE": alike("anchor balloon basket blanket box brush button camera cap coin compass cushion doll fan flute guitar key "
                 "ladder lantern map mirror necklace pillow ribbon robot ruler shell spoon telescope towel umbrella wagon "
                 "whistle", **IT),
    "MANY": alike("beads cards crayons earrings marbles paintbrushes sandals skis spurs stilts sunglasses tweezers", **THEY),
    "LOOK": alike("beautiful blue brown chipped costly fancy foreign green grubby heavy little magic perfect plain pretty "
                  "purple red scratched shiny special spotted striped tiny white yellow"),
    "LOOK_AN": alike("amazing ancient elegant expensive odd old orange ordinary"),
    "PLACE": {place: {"at": at} for at, places in {
        "at": "airport cinema fair lighthouse museum school station zoo",
        "beside": "canal lake pond railway road swamp",
        "in": "barn cave field garden jungle maze orchard quarry tunnel village woods",
        "near": "bakery chapel dam monument tower windmill",
        "on": "beach ferry island playground",
    }.items() for place in places.split()},
    "WEATHER": {weather: {"wet": wet} for weather, wet in map(str.split, (
        "breezy cool, chilly icy, cold numb, damp clammy, drizzly damp, dusty dusty, foggy moist, frosty frozen, "
        "hot sweaty, misty dewy, muddy brown, rainy soaked, sandy gritty, slushy soggy, snowy white, stormy drenched, "
        "sultry sticky, sunny warm, wet dripping, windy chilled").split(", "))},
}

# The words that a story may pick freely.

WORDS = {
    "kind": "bashful bossy bright cheeky clever curious dreamy friendly fussy grumpy helpful jolly lazy lonely lucky messy "
            "neat patient polite quick restless serious silent sleepy strong sweet tidy tired wild witty",
    "took": "brought carried dragged hauled lugged smuggled took",
    "hue": "baggy checked cotton crimson dirty flowery furry long pale patched ragged scarlet silk soft thick torn warm",
    "hat": "beret bonnet cape cloak collar dress frock hat jacket kilt mask poncho shirt suit tie turban vest wig",
    "cried": "bawled called cursed gasped gulped howled mumbled roared shouted sighed sobbed stammered wailed whimpered "
             "whispered yelped",
    "sadly": "angrily bitterly desperately fearfully fiercely glumly helplessly hotly loudly mournfully quietly shakily shyly "
             "stiffly timidly wearily",
    "kindly": "boldly brightly calmly cheekily coolly firmly gallantly grandly kindly mildly patiently proudly serenely slowly "
              "tenderly wisely",
    "searched": "checked combed searched swept",
    "dusty": "chilly cluttered cramped crowded dark dim dusty empty gloomy narrow stuffy tidy untidy",
    "cellar": "attic bathroom cellar cupboard hall laundry pantry porch wardrobe",
    "boldly": "Barefoot Boldly Calmly Cautiously Excitedly Gladly Hopefully Noisily Quickly Silently Stealthily Then",
    "hurried": "crawled cycled dashed hiked jogged pedalled ran scrambled sped stormed stumbled walked",
    "found": "discovered found glimpsed noticed saw smelled spied spotted",
    "mossy": "big burnt crooked dark fallen forgotten huge leaning massive mouldy peculiar rotten shabby sinking solid sticky "
             "sturdy wobbly",
    "log": "barrel bin cabin chair desk fence hedge ledge pile pipe pole rock shed sign step stool table trunk",
    "sleeves": "ankles cuffs feet hands knees legs shins shoulders socks trousers",
    "smiled": "beamed cheered danced glowed hummed laughed rejoiced skipped twirled whistled yodelled",
    "hot": "baked boiled cheap creamy delicious fresh frozen instant perfect rich sizzling soft spicy sweet warm",
    "soup": "bacon beef broth cod dumplings fritters ham lentils meatballs omelette pasta pizza pudding ravioli salad soup "
            "stew tofu",
    "butter": "basil butter celery curry garlic gravy jam leeks lettuce mushrooms nuts onions parsnips pickles sage spinach "
              "syrup tomatoes vinegar",
}

STORIES = Grammar({
    "story": "<opening> <company> <loss> <return> <ending>",

    "opening": [("[One|On a] {weather=WEATHER} <day> <child> <took> <treasure> to the {place=PLACE}.", 6),
                ("It was a {weather=WEATHER} <day>, and <child> <took> <treasure> to the {place=PLACE}.", 1)],
    "day": "[Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|day|morning|afternoon]",
    "child": [("<kind> {hero=NAME}", 4), ("a <kind> <girl_or_boy>", 1)],
    "girl_or_boy": ["girl called {hero=GIRL}", "boy called {hero=BOY}"],
    "treasure": [("a {look=LOOK} {thing=ONE}", 5), ("an {look=LOOK_AN} {thing=ONE}", 2), ("some {look=LOOK} {thing=MANY}", 3)],

    "company": [("With {hero.him} [came|ran|walked|went] {pet=PET}, a <kind> {animal=ANIMAL} <dressed>.", 2),
                ("{hero.His} <friend> {pet=PET} the {animal=ANIMAL} {animal.ran} <along> <dressed>.", 1),
                ("{pet=PET} the {animal=ANIMAL} came too, <dressed>.", 1)],
    "friend": "[chum|cousin|friend|neighbour|pal|partner|rival|tutor]",
    "along": "[ahead|along|behind|beside {hero.him}|past]",
    "dressed": "in a <hue> <hat>, and they <played>",
    "played": [
        "acted [ballets|comedies|operas|plays]", "ate [apples|cake|grapes|melons|pears|pie|plums|tarts|toffee]",
        "baked [biscuits|bread|buns|scones]", "blew [bubbles|trumpets]",
        "built [castles|dens|forts|huts|rafts|sheds|tents|towers]",
        "chased [butterflies|echoes|shadows]", "collected [coins|leaves|shells|stones]", "counted [ants|bees|birds|trees]",
        "danced [jigs|polkas|reels|tangos|waltzes]", "discussed [cricket|philosophy|politics]",
        "drank [cocoa|juice|lemonade|water]", "drew [cows|dragons|faces|ghosts|monsters|ships]", "flew [drones|kites]",
        "juggled [lemons|onions|pebbles]", "made [crowns|masks|mischief|wreaths]",
        "painted [clouds|eyes|flags|flowers|horses|stars]", "planted [beans|daisies|roses|seeds|tulips]",
        "played [cards|catch|chess|football|golf|leapfrog|pirates|poker|rugby|tag|tennis]", "practised [ballet|judo|karate|yoga]",
        "read [comics|novels|poems]", "sang [ballads|carols|duets|hymns|rounds|songs]", "sketched [bridges|faces|hills]",
        "studied [algebra|birds|grammar|insects|magic|maps|moss]", "swapped [hats|jokes|names|recipes]",
        "told [fables|fibs|lies|riddles|secrets|stories|tales]", "whistled [marches|melodies|tunes]",
        "wrote [letters|limericks|plays]"],

    "loss": [('[Afterwards|Halfway home|Later|Presently|Soon|Suddenly] <lament> <advice>', 5),
             ('[At home|Back home] <lament> In vain they <searched> the <dusty> <cellar>. <advice>', 1)],
    "lament": '{hero} <cried> <sadly>, "<where>"',
    "where": [("Where {thing.is} <mine>?", 2), ("My {thing} {thing.is} <gone>!", 1),
              ("Oh [bother|dear|help|horror|misery|my|no|woe], <mine> {thing.is} <gone>!", 1),
              ("I [broke|dropped|forgot|left|lost|mislaid|miss|misplaced|need|want] <mine>!", 3),
              ("[Somebody|Someone] [borrowed|has|hid|sold|stole|took] <mine>!", 2)],
    "mine": [("my {thing}", 3), ("the {look} {thing}", 1)],
    "gone": "[gone|lost|missing]",

    "advice": [('"<cheer>!" <said> [{pet}|the {animal}] <kindly>. "<idea>"', 3),
               ('[{pet}|The {animal}] <said> <kindly>, "<cheer>! <idea>"', 1)],
    "cheer": [("<hush>", 3), ("Be [brave|calm|patient|sensible]", 1), ("Do not [cry|despair|fret|panic|weep|worry]", 1)],
    "hush": "[Bother|Breathe|Calm|Cheer up|Courage|Easy|Fiddlesticks|Focus|Hush|Listen|Nonsense|Patience|Piffle|Quiet|Relax|"
            "Rubbish|Silence|Smile|Steady|Think|Wait]",
    "said": "[{animal.said}|advised|answered|argued|begged|coughed|declared|decided|murmured|observed|ordered|pleaded|promised|"
            "remarked|replied|said|suggested|urged|yawned]",
    "idea": [("[I think|Maybe|Perhaps|Surely] {thing.it} {thing.is} {place.at} the {place}.", 1),
             ("You [dropped|hid|left] {thing.them} {place.at} the {place}.", 1),
             ("[Check|Inspect|Remember|Search|Try|Visit] the {place}!", 3)],

    "return": "<boldly> they <hurried> back, and <finding>",
    "finding": [("there, <nook>, [lay|sat|waited|{thing.was}] the {look} {thing}.", 1),
                ("[{pet}|{hero}|the {animal}] <found> {thing.them} <nook>.", 5),
                ('a <kind> {helper=HELPER} [had|held] {thing.them}. '
                 '"{thing.It} {thing.belongs} to me!" {hero} told {helper.him}.', 1)],
    "nook": "[behind|below|beneath|beside|by|near|under] a <mossy> <log>",

    "ending": "{hero.His} <sleeves> were {weather.wet}, but {hero.he} <smiled> <kindly>. "
              "[Dinner|Supper|Tea] was <hot> <soup> with <butter><treat>",
    "treat": [(".", 1), (", and {animal.food} for [{pet}|the {animal}].", 1)],
} | {name: words.split() for name, words in WORDS.items()}, POOLS)


def prose() -> str:
    """The project's own tales, letters, instructions and dialogues, shuffled together like cards, two empty lines between pieces.

    Each file's pieces keep their order and are spread evenly over the whole, so that the last tenth, which training holds out,
    has some of every kind.
    """
    pieces = []
    for name in PROSE:
        ours = read_text(DATA / name).strip("\n").split("\n\n\n")
        pieces += [((i + 0.5) / len(ours), piece) for i, piece in enumerate(ours)]
    return "\n\n\n".join(piece for _, piece in sorted(pieces)) + "\n"
