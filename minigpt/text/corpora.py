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
GIRL = alike("Ada Agnes Alice Amy Anna Bella Clara Daisy Ella Elsa Emma Eva Flora Frida Grace Hana Ida Iris Ivy Jana Jane "
             "Julia Kate Laura Lea Lena Lily Lola Lucy Maria Marta Maya Mia Nina Nora Olga Paula Rita Rosa Ruth Sara Sofia "
             "Stella Tina Vera Wanda Yara Zoe", **SHE)
BOY = alike("Adam Albert Arno Ben Bruno Carlo Daniel David Diego Emil Erik Felix Finn Frank George Hans Hugo Ivan Jack Jakob "
            "Jim Jonas Juan Karl Lars Leo Luca Marco Max Milo Nico Noah Oscar Otto Paul Pedro Peter Ravi Rolf Sam Simon Theo "
            "Tito Tom Victor Will Yusuf Zeno", **HE)

POOLS = {
    "GIRL": GIRL, "BOY": BOY, "NAME": GIRL | BOY,
    "HELPER": alike("actress aunt gardener lady nurse princess queen woman", **SHE)
    | alike("baker fisherman king knight man postman sailor uncle", **HE),
    "PET": alike("Acorn Banjo Bingo Biscuit Bramble Bubbles Bumble Button Chips Clover Cocoa Comet Crumb Custard Domino "
                 "Doodle Dumpling Fidget Ginger Gizmo Hazel Jingle Jumbo Lollipop Mango Maple Mittens Mochi Muffin Noodle "
                 "Nugget Nutmeg Olive Patch Peanut Pebble Pepper Pickle Pip Plum Pocket Pretzel Pudding Puzzle Rocket Rusty "
                 "Scout Smudge Snowball Socks Sparky Speckle Spud Sprout Sunny Thistle Tickle Toffee Truffle Tumble Waffle "
                 "Whiskers Wobble Ziggy"),
    "ANIMAL": {animal: {"said": said, "ran": ran, "food": food} for animal, said, ran, food in map(str.split, (
        "badger grunted lumbered potatoes, bear growled lumbered honey, cat purred strolled milk, "
        "crow cawed flapped cherries, dog barked bounded bones, donkey brayed plodded hay, duck quacked waddled peas, "
        "fox yapped trotted eggs, frog croaked hopped flies, goat bleated skipped cabbage, goose honked waddled grass, "
        "hamster squeaked scampered seeds, hedgehog snuffled scurried beetles, hen clucked fluttered corn, "
        "horse neighed trotted oats, kitten mewed scampered cream, lamb bleated skipped clover, "
        "lion roared padded steak, monkey chattered swung bananas, mouse squeaked scampered cheese, "
        "otter whistled scurried trout, owl hooted flew moths, panda hummed rolled bamboo, "
        "parrot squawked flapped figs, penguin squawked waddled sardines, pig snorted trotted apples, "
        "pony neighed trotted carrots, puppy yapped bounded biscuits, rabbit snuffled hopped radishes, "
        "raven cawed flapped worms, robin chirped flew crumbs, seal barked wobbled herrings, "
        "sheep bleated plodded grass, snake hissed slithered eggs, spider hummed scuttled flies, "
        "squirrel chattered scurried hazelnuts, swan hissed waddled reeds, tortoise hummed plodded lettuce, "
        "wolf howled padded sausages, wren chirped flew ants").split(", "))},
    "ONE": alike("anchor apron balloon banjo basket bell blanket book box broom brush bucket button cake camera candle cap "
                 "clock coin comb compass cup cushion diary doll drum fan feather flute globe guitar helmet key kite ladder "
                 "lamp lantern magnet map medal mirror mug necklace pencil pillow puppet ribbon ring robot rope ruler scarf "
                 "shell spade spoon teapot telescope torch towel trumpet umbrella violin wagon wallet whistle", **IT),
    "MANY": alike("beads boots cards clogs crayons dominoes earrings gloves marbles mittens paintbrushes pearls sandals "
                  "skates skis slippers spurs stamps stilts stockings sunglasses tickets tweezers", **THEY),
    "LOOK": alike("beautiful black blue bright brown cheap chipped colourful costly curious fancy favourite foreign golden "
                  "green grand grubby handsome heavy large little lovely magic new perfect pink plain precious pretty "
                  "priceless purple rare red rusty scratched shabby shiny silver special splendid spotted sticky striped "
                  "strange tiny useful white wonderful yellow"),
    "LOOK_AN": alike("amazing ancient elegant expensive odd old orange ordinary"),
    "PLACE": {place: {"at": at} for at, places in {
        "at": "airport castle cinema circus fair farm lighthouse market museum palace school shop station theatre zoo",
        "beside": "canal fountain lake motorway pond pool railway river road stream swamp well",
        "in": "barn canyon cave desert field forest garden glade jungle library maze meadow orchard park quarry stable tunnel "
              "valley village vineyard woods",
        "near": "bakery bridge chapel crossroads dam mill monument prison tower waterfall windmill",
        "on": "beach cliff ferry hill island pier playground terrace",
    }.items() for place in places.split()},
    "WEATHER": {weather: {"wet": wet} for weather, wet in map(str.split, (
        "breezy cool, chilly icy, cold numb, damp clammy, drizzly damp, dusty dusty, foggy moist, frosty frozen, "
        "hot sweaty, misty dewy, muddy brown, rainy soaked, sandy gritty, slushy soggy, snowy white, stormy drenched, "
        "sultry sticky, sunny warm, wet dripping, windy chilled").split(", "))},
}

# The words that a story may pick freely.

WORDS = {
    "kind": "bashful bold bossy brave bright careful cheeky cheerful clever clumsy curious daring dreamy famous friendly "
            "funny fussy gentle grumpy happy helpful hungry jolly kind lazy lively lonely loud lucky merry messy modest neat "
            "noisy patient playful polite proud quick quiet restless rude serious shy silent silly sleepy small strong "
            "stubborn sweet tall tidy tiny tired truthful wild wise witty young",
    "took": "brought carried dragged hauled lugged smuggled took",
    "hue": "baggy beige checked cosy cotton cream crimson dashing dirty faded flowery fluffy furry linen long loose pale "
           "paper patched plaid ragged satin scarlet short silk smart soft stylish thick thin torn velvet warm woollen",
    "hat": "beret bib bonnet bow cape cardigan cloak coat collar costume dress fez frock gown hat hood jacket jumper kilt "
           "kimono mask nightgown poncho shawl shirt skirt suit sweater tie toga turban tutu vest waistcoat wig",
    "cried": "bawled bellowed called cried cursed exclaimed gasped groaned gulped hissed howled moaned mumbled muttered "
             "roared screamed shouted shrieked sighed sniffed sobbed squealed stammered stuttered wailed wept whimpered "
             "whined whispered yelled yelped",
    "sadly": "angrily anxiously bitterly crossly desperately faintly fearfully feebly fiercely furiously glumly gravely "
             "helplessly hoarsely hotly impatiently loudly miserably mournfully nervously quietly sadly shakily shrilly shyly "
             "softly stiffly tearfully timidly weakly wearily wildly",
    "kindly": "boldly bravely brightly briskly calmly casually cheekily cheerfully coolly dreamily firmly gaily gallantly "
              "gently grandly hopefully kindly merrily mildly modestly patiently politely proudly sensibly serenely sleepily "
              "slowly solemnly tenderly warmly wisely",
    "searched": "checked combed searched swept",
    "dusty": "chilly cluttered cramped crowded dark dim dusty empty gloomy narrow stuffy tidy untidy",
    "cellar": "attic basement bathroom bedroom cellar corridor cupboard garage hall kitchen laundry loft pantry parlour porch "
              "study wardrobe",
    "boldly": "Barefoot Blindly Boldly Breathlessly Calmly Carefully Cautiously Eagerly Excitedly Frantically Gladly Hastily "
              "Hopefully Nimbly Noisily Promptly Quickly Secretly Silently So Stealthily Swiftly Then Together",
    "hurried": "crawled crept cycled danced dashed galloped hiked hurried jogged marched pedalled raced ran rushed scrambled "
               "skated sped sprinted stormed strode stumbled tiptoed walked",
    "found": "discovered found glimpsed noticed saw smelled spied spotted",
    "mossy": "big broken burnt cracked crooked damp dark dirty fallen filthy forgotten ghastly huge large leaning low massive "
             "mossy mouldy painted peculiar pointed rotten round shabby shaky sinking slimy solid square sticky strange "
             "sturdy wet wobbly wooden",
    "log": "barrel bench bin bush cabin cart chair crate desk door fence gate hedge kennel ledge log pile pillar pipe "
           "plank pole post rock sack shed shelf sign statue step stone stool stump table tree trunk wall",
    "sleeves": "ankles clothes cuffs elbows feet fingers hands heels knees laces legs pockets shins shoes shoulders sleeves "
               "socks toes trousers wrists",
    "smiled": "beamed bowed cheered chuckled danced giggled glowed grinned hummed jumped laughed leapt rejoiced sang skipped "
              "smiled twirled waved whistled winked yodelled",
    "hot": "baked bland boiled burnt cheap cold creamy crispy delicious dry fresh fried frozen hot instant leftover perfect "
           "plain rich salty sizzling smoky soft sour spicy steaming sweet tasty warm",
    "soup": "bacon beans beef bread broth chicken cod crackers dumplings fish fritters gnocchi ham lasagne lentils macaroni "
            "meatballs noodles omelette pancakes pasta pie pizza porridge pudding quiche ravioli rice salad salmon soup "
            "spaghetti stew toast tofu waffles",
    "butter": "basil beetroot butter cabbage celery chutney curry fennel garlic ginger gravy herbs jam ketchup leeks lemon "
              "lettuce mint mushrooms mustard nuts olives onions parsley parsnips peas pickles raisins sage salsa spinach "
              "sprouts syrup thyme tomatoes turnips vinegar",
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
    "treat": [(".", 4), (", and {animal.food} for [{pet}|the {animal}].", 1)],
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
