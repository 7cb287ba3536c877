"""Children's stories from a grammar, so that their entropy is known exactly.

    On a slushy Saturday bossy Lars lugged a tiny robot to the tunnel. His neighbour Olive the sheep
    plodded along in a scarlet frock, and they swapped names. At home Lars mumbled angrily, "My
    robot is missing!" In vain they combed the dusty cellar. "Be brave!" replied Olive calmly. "You
    hid it in the tunnel." Boldly they hiked back, and a messy man had it. "It belongs to me!" Lars
    told him. His legs were soggy, but he hummed patiently. Tea was soft pizza with mushrooms.

STORIES is a Grammar (grammar.py). Each story introduces a child, an animal, a thing, a place and a
kind of weather, and mentions each of them again later: pronouns agree with the child, verbs agree
with the thing, the thing was lost at the place, and after slushy weather the child's feet or hands
are soggy. A word that follows from earlier words in this way costs 0 bits. The mean loss of a model
minus STORIES.entropy() measures what the model has not learnt.

Source: written for this project.
Not here: other links of meaning. All other words are independent, so a sheep may wear a frock.
"""
from minigpt.worlds.grammar import Grammar, alike

# Pools. The features of a value are the words that must agree with it, or that follow from it.
SHE, HE = {"he": "she", "him": "her", "his": "her"}, {"he": "he", "him": "him", "his": "his"}
IT = {"it": "it", "them": "it", "is": "is", "was": "was", "belongs": "belongs"}
THEY = {"it": "they", "them": "them", "is": "are", "was": "were", "belongs": "belong"}
GIRL = alike("Ada Alice Clara Ella Flora Grace Ivy Jane Lea Lily Marta Mia Paula Rosa Stella Vera",
             **SHE)
BOY = alike("Adam Arno Daniel Diego Finn George Jack Jim Lars Luca Nico Oscar Peter Rolf Tito "
            "Victor", **HE)

# Animal, what it said, how it ran, its food.
ANIMALS = """
    badger grunted lumbered potatoes, cat purred strolled milk, dog barked bounded bones,
    duck quacked waddled peas, frog croaked hopped flies, hedgehog snuffled scurried beetles,
    horse neighed trotted oats, lamb bleated skipped clover, monkey chattered swung bananas,
    otter whistled scurried trout, penguin squawked waddled sardines,
    pony neighed trotted carrots, rabbit snuffled hopped radishes, robin chirped flew crumbs,
    sheep bleated plodded grass, wolf howled padded sausages"""
# Preposition: the places that it stands before.
PLACES = {"at": "airport cinema lighthouse museum station", "beside": "canal lake railway road",
          "in": "barn field jungle orchard tunnel", "near": "bakery chapel monument tower",
          "on": "beach ferry island"}
# Weather, and what the child's feet, hands or cuffs are after it.
WEATHER = """
    breezy cool, chilly icy, cold numb, damp clammy, drizzly damp, dusty dusty, foggy moist,
    frosty frozen, hot sweaty, misty dewy, muddy brown, rainy soaked, sandy gritty, slushy soggy,
    snowy white, stormy drenched, sultry sticky, sunny warm, wet dripping, windy chilled"""

POOLS = {
    "GIRL": GIRL, "BOY": BOY, "NAME": GIRL | BOY,
    "HELPER": alike("actress aunt gardener lady nurse princess queen woman", **SHE)
    | alike("baker fisherman king knight man postman sailor uncle", **HE),
    "PET": alike("Acorn Bingo Bumble Chips Crumb Dumpling Ginger Jumbo Mango Muffin Olive Peanut "
                 "Pip Pocket Rocket Snowball Sparky Sunny Tickle Waffle"),
    "ANIMAL": {animal: {"said": said, "ran": ran, "food": food}
               for animal, said, ran, food in map(str.split, ANIMALS.split(","))},
    "ONE": alike("anchor balloon basket box brush button cap coin cushion doll fan guitar key "
                 "ladder map mirror pillow ribbon robot shell spoon telescope umbrella wagon",
                 **IT),
    "MANY": alike("beads cards crayons earrings marbles sandals skis spurs stilts sunglasses",
                  **THEY),
    "LOOK": alike("beautiful brown costly foreign grubby little perfect pretty red shiny "
                  "spotted tiny"), "LOOK_AN": alike("amazing elegant odd orange"),
    "PLACE": {place: {"at": at} for at, places in PLACES.items() for place in places.split()},
    "WEATHER": {weather: {"wet": wet} for weather, wet in map(str.split, WEATHER.split(","))},
}

# Rules whose alternatives are single words.
WORDS = {
    "kind": "bashful bossy cheeky curious friendly grumpy jolly lonely messy neat polite restless "
            "silent strong tidy wild",
    "took": "brought carried dragged hauled lugged smuggled took",
    "hue": "baggy checked crimson flowery furry pale ragged scarlet soft torn",
    "hat": "beret bonnet cloak collar frock hat kilt mask shirt suit turban vest",
    "cried": "bawled cursed gulped mumbled shouted sobbed wailed whispered",
    "sadly": "angrily desperately fiercely helplessly loudly quietly shyly timidly",
    "kindly": "boldly calmly coolly gallantly kindly patiently serenely tenderly",
    "searched": "checked combed searched swept",
    "dusty": "chilly cluttered crowded dark dusty gloomy narrow tidy",
    "cellar": "attic bathroom cellar cupboard hall laundry pantry porch",
    "boldly": "Barefoot Boldly Cautiously Excitedly Hopefully Noisily Silently Stealthily",
    "hurried": "crawled cycled hiked jogged ran scrambled stormed stumbled",
    "found": "discovered found glimpsed noticed saw smelled spied spotted",
    "mossy": "big crooked fallen huge mouldy rotten sinking sticky",
    "log": "barrel cabin desk hedge pipe rock sign stool",
    "sleeves": "ankles cuffs feet hands legs shins shoulders socks",
    "smiled": "beamed cheered danced hummed laughed rejoiced twirled whistled",
    "hot": "baked boiled creamy fresh instant rich soft sweet",
    "soup": "bacon broth dumplings ham omelette pizza ravioli soup",
    "butter": "basil celery garlic leeks mushrooms onions sage syrup",
}

# What the child and the animal do together: a verb, and the objects that it may have.
PLAYED = [
    "acted [ballets|comedies|operas|plays]",
    "ate [apples|cake|grapes|melons|pears|pie|plums|tarts|toffee]",
    "baked [biscuits|bread|buns|scones]", "blew [bubbles|trumpets]",
    "built [castles|dens|forts|huts|rafts|sheds|tents|towers]",
    "chased [butterflies|echoes|shadows]", "collected [coins|leaves|shells|stones]",
    "counted [ants|bees|birds|trees]", "danced [jigs|polkas|reels|tangos|waltzes]",
    "discussed [cricket|philosophy|politics]", "drank [cocoa|juice|lemonade|water]",
    "drew [cows|dragons|faces|ghosts|monsters|ships]", "flew [drones|kites]",
    "juggled [lemons|onions|pebbles]", "made [crowns|masks|mischief|wreaths]",
    "painted [clouds|eyes|flags|flowers|horses|stars]",
    "planted [beans|daisies|roses|seeds|tulips]",
    "played [cards|catch|chess|football|golf|leapfrog|pirates|poker|rugby|tag|tennis]",
    "practised [ballet|judo|karate|yoga]", "read [comics|novels|poems]",
    "sang [ballads|carols|duets|hymns|rounds|songs]", "sketched [bridges|faces|hills]",
    "studied [algebra|birds|grammar|insects|magic|maps|moss]", "swapped [hats|jokes|names|recipes]",
    "told [fables|fibs|lies|riddles|secrets|stories|tales]", "whistled [marches|melodies|tunes]",
    "wrote [letters|limericks|plays]",
]

STORIES = Grammar({
    "story": "<opening> <company> <loss> <return> <ending>",
    "opening": [
        ("[One|On a] {weather=WEATHER} <day> <child> <took> <treasure> to the {place=PLACE}.", 6),
        ("It was a {weather=WEATHER} <day>, and <child> <took> <treasure> to the "
         "{place=PLACE}.", 1)],
    "day": "[Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|day|morning|afternoon]",
    "child": [("<kind> {hero=NAME}", 4), ("a <kind> <girl_or_boy>", 1)],
    "girl_or_boy": ["girl called {hero=GIRL}", "boy called {hero=BOY}"],
    "treasure": [("a {look=LOOK} {thing=ONE}", 5), ("an {look=LOOK_AN} {thing=ONE}", 2),
                 ("some {look=LOOK} {thing=MANY}", 3)],
    "company": [
        ("With {hero.him} [came|ran|walked|went] {pet=PET}, a <kind> {animal=ANIMAL} "
         "<dressed>.", 2),
        ("{hero.His} <friend> {pet=PET} the {animal=ANIMAL} {animal.ran} <along> <dressed>.", 1),
        ("{pet=PET} the {animal=ANIMAL} came too, <dressed>.", 1)],
    "friend": "[chum|cousin|friend|neighbour|pal|partner|rival|tutor]",
    "along": "[ahead|along|behind|beside {hero.him}|past]",
    "dressed": "in a <hue> <hat>, and they <played>",
    "played": PLAYED,
    "loss": [
        ("[Afterwards|Halfway home|Later|Presently|Soon|Suddenly] <lament> <advice>", 5),
        ("[At home|Back home] <lament> In vain they <searched> the <dusty> <cellar>. <advice>", 1)],
    "lament": '{hero} <cried> <sadly>, "<where>"',
    "where": [
        ("Where {thing.is} <mine>?", 2), ("My {thing} {thing.is} <gone>!", 1),
        ("Oh [bother|dear|help|horror|misery|my|no|woe], <mine> {thing.is} <gone>!", 1),
        ("I [broke|dropped|forgot|left|lost|mislaid|miss|misplaced|need|want] <mine>!", 3),
        ("[Somebody|Someone] [borrowed|has|hid|sold|stole|took] <mine>!", 2)],
    "mine": [("my {thing}", 3), ("the {look} {thing}", 1)],
    "gone": "[gone|lost|missing]",
    "advice": [('"<cheer>!" <said> [{pet}|the {animal}] <kindly>. "<idea>"', 3),
               ('[{pet}|The {animal}] <said> <kindly>, "<cheer>! <idea>"', 1)],
    "cheer": [("<hush>", 3), ("Be [brave|calm|patient|sensible]", 1),
              ("Do not [cry|despair|fret|panic|weep|worry]", 1)],
    "hush": "[Bother|Breathe|Calm|Cheer up|Courage|Easy|Fiddlesticks|Focus|Hush|Listen|Nonsense|"
            "Patience|Piffle|Quiet|Relax|Rubbish|Silence|Smile|Steady|Think|Wait]",
    "said": "[{animal.said}|advised|answered|argued|begged|coughed|declared|decided|murmured|"
            "observed|ordered|pleaded|promised|remarked|replied|said|suggested|urged|yawned]",
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
