/* The grammar of the stories: all words and sentences of the default corpus. stories_grammar.h explains the
 * notation.
 *
 * It must satisfy three rules: only later beats follow a beat; nothing that begins with a vowel follows
 * "a"; two derivations never give the same text (a test checks this).
 *
 * A model learns to recall a word sooner if its class has few words and if the same class rarely introduces
 * something new in the same place. So lists that are recalled are short, and those of relatives and places
 * are divided into recalled words and others. */
#include "llmc/stories/stories_grammar.h"

// clang-format off

/* --- tables and lists --- */

enum table {
    PERSON, RELATIVE, HELPER, THING, COLOUR, PLACE, SPOT, HIDEOUT, GOAL, CONTAINER, NUMBER, TREAT, FOOD, ANIMAL, NEED,
    PET,
    TABLES
};

static const char *const person[] = { /* girls, then boys */
    "Anna|she|her|her", "Mia|she|her|her", "Lily|she|her|her", "Emma|she|her|her", "Zoe|she|her|her",
    "Ben|he|him|his", "Tom|he|him|his", "Max|he|him|his", "Leo|he|him|his", "Sam|he|him|his",
};
static const char *const relative[] = {
    "mother|she|her", "sister|she|her", "father|he|him", "brother|he|him",
    "grandmother|she|her", "aunt|she|her", "grandfather|he|him", "uncle|he|him",
};
static const char *const helper[] = {
    "farmer|he|him", "baker|he|him", "king|he|him", "teacher|she|her", "queen|she|her",
};
static const char *const thing[] = { /* toys, then clothes */
    "ball|it|it|was|is|throw|threw", "kite|it|it|was|is|fly|flew", "drum|it|it|was|is|play|played",
    "boat|it|it|was|is|sail|sailed", "doll|it|it|was|is|dress|dressed", "bear|it|it|was|is|hug|hugged",
    "book|it|it|was|is|read|read", "bike|it|it|was|is|ride|rode",
    "boots|they|them|were|are|wear|wore", "socks|they|them|were|are|wear|wore",
    "shoes|they|them|were|are|wear|wore",
};
static const char *const colour[] = { /* of things, then of animals */
    "red|a rose", "blue|the sky", "green|the grass", "yellow|the sun", "white|the snow",
    "black|the night", "brown|a nut", "gray|a stone",
};
static const char *const place[] = {
    "park|in the park", "garden|in the garden", "forest|in the forest", "farm|on the farm",
    "lake|at the lake", "river|by the river", "village|in the village", "hill|on the hill",
};
static const char *const spot[] = {"tree", "rock", "bush", "bench", "wall", "shed", "cart"};
static const char *const hideout[] = {
    "in the barn", "in the tent", "under the bed", "under the table", "behind the door", "up the ladder",
};
static const char *const goal[] = {"bridge", "gate", "well", "house", "school"};
static const char *const container[] = {"box", "bag", "basket", "bucket", "chest"};
static const char *const number[] = {"one", "two", "three", "four", "five", "six", "seven", "eight", "nine"};
static const char *const treat[] = {
    "apples", "pears", "cookies", "nuts", "eggs", "plums",
};
static const char *const food[] = {
    "soup|pot", "rice|pot", "stew|pot", "pasta|pot", "pizza|oven", "cake|oven", "pie|oven", "bread|oven",
};
static const char *const animal[] = {
    "dog|barked", "cat|purred", "duck|quacked", "bird|sang", "frog|jumped", "mouse|squeaked",
};
static const char *const need[] = {
    "hungry|some bread", "thirsty|some water", "cold|a warm blanket", "tired|a soft pillow",
    "bored|a rubber ball",
};
static const char *const pet[] = {"Rex", "Coco", "Spot", "Lucky", "Fluffy", "Pip"};

#define TABLE(columns, rows) {columns, rows, ARRAY_LENGTH(rows)}
static const struct story_table tables[TABLES] = {
    [PERSON]    = TABLE("name|he|him|his", person),
    [RELATIVE]  = TABLE("name|he|him", relative),
    [HELPER]    = TABLE("name|he|him", helper),
    [THING]     = TABLE("name|they|it|was|is|play|played", thing),
    [COLOUR]    = TABLE("name|rose", colour),
    [PLACE]     = TABLE("name|at", place),
    [SPOT]      = TABLE("name", spot),
    [HIDEOUT]   = TABLE("name", hideout),
    [GOAL]      = TABLE("name", goal),
    [CONTAINER] = TABLE("name", container),
    [NUMBER]    = TABLE("name", number),
    [TREAT]     = TABLE("name", treat),
    [FOOD]      = TABLE("name|pot", food),
    [ANIMAL]    = TABLE("name|sang", animal),
    [NEED]      = TABLE("name|help", need),
    [PET]       = TABLE("name", pet),
};
static const struct story_list lists[] = {
    {"person", PERSON, 0, 10}, {"girl", PERSON, 0, 5}, {"boy", PERSON, 5, 5},
    {"relative", RELATIVE, 0, 4}, {"elder", RELATIVE, 4, 4},
    {"helper", HELPER, 0, 5},
    {"toy", THING, 0, 8}, {"smalltoy", THING, 0, 7}, {"clothes", THING, 8, 3},
    {"colour", COLOUR, 0, 5}, {"fur", COLOUR, 5, 3}, {"place", PLACE, 0, 8},
    {"spot", SPOT, 0, 7}, {"hideout", HIDEOUT, 0, 6}, {"goal", GOAL, 0, 5},
    {"container", CONTAINER, 0, 5},
    {"few", NUMBER, 0, 2}, {"several", NUMBER, 1, 3},
    {"many", NUMBER, 4, 4}, /* at least two are left: "apples" stays right */
    {"treat", TREAT, 0, 6}, {"food", FOOD, 0, 8}, {"animal", ANIMAL, 0, 6}, {"need", NEED, 0, 5},
    {"pet", PET, 0, 6},
};

/* --- registers --- */

#define AT(letter) [letter - 'a']
static const int8_t registers[STORY_REGISTERS] = {
    AT('h') = PERSON + 1,    /* the hero */
    AT('f') = PERSON + 1,    /* the friend */
    AT('w') = PERSON + 1,    /* the winner of a race ... */
    AT('l') = PERSON + 1,    /* ... and who lost it */
    AT('r') = RELATIVE + 1,
    AT('b') = HELPER + 1,    /* who comes by and helps */
    AT('t') = THING + 1,     /* the thing the story is about, and its colour */
    AT('c') = COLOUR + 1,
    AT('p') = PLACE + 1,
    AT('s') = SPOT + 1,      /* where something is */
    AT('x') = SPOT + 1,      /* where it is not */
    AT('y') = SPOT + 1,
    AT('i') = HIDEOUT + 1,   /* where the friend hides */
    AT('g') = GOAL + 1,
    AT('k') = CONTAINER + 1,
    AT('n') = NUMBER + 1,
    AT('m') = NUMBER + 1,    /* taken from n */
    AT('q') = TREAT + 1,
    AT('o') = FOOD + 1,
    AT('a') = ANIMAL + 1,
    AT('v') = NEED + 1,      /* what the animal needs */
    AT('e') = PET + 1,       /* its name */
};

/* --- phrases --- */

#define CHOICE(name, ...)                                                                                    \
    {name, (const struct story_line[]){__VA_ARGS__},                                                         \
     sizeof((const struct story_line[]){__VA_ARGS__}) / sizeof(struct story_line)}
#define W1(text) {1, text, 0}
#define W2(text) {2, text, 0}
#define W3(text) {3, text, 0}
#define W4(text) {4, text, 0}

static const struct story_choice phrases[] = {
    CHOICE("trait", W2("little"), W2("kind"), W2("clever"), W2("brave"), W2("quiet"),
           W2("funny"), W1("shy")),
    CHOICE("child", W1("girl named {h=girl}"), W1("boy named {h=boy}")),
    CHOICE("pair", W1("{h=girl} and {f=boy}"), W1("{h=boy} and {f=girl}")),
    CHOICE("met", W1("{h=girl} met {f=boy}"), W1("{h=boy} met {f=girl}")),
    CHOICE("weather", W3("sunny"), W3("warm"), W2("cold"), W2("windy"), W2("cloudy"), W2("bright")),
    CHOICE("weekday", W1("Monday"), W1("Tuesday"), W1("Wednesday"), W1("Thursday"), W1("Friday"),
           W2("Saturday"), W2("Sunday")),
    CHOICE("hour", W3("morning"), W3("afternoon"), W2("evening")),
    CHOICE("hobby", W2("to sing"), W2("to dance"), W2("to paint"), W2("to swim"), W2("to cook"),
           W1("to climb")),
    CHOICE("small", W2("small"), W2("big"), W2("tiny"), W2("quiet"), W1("pretty")),
    CHOICE("size", W3("small"), W3("little"), W2("big"), W2("tiny"), W1("funny")),
    CHOICE("good", W3("good"), W2("great"), W2("wonderful")),
    CHOICE("friends", W3("good friends"), W3("best friends"), W2("close friends")),
    CHOICE("happy", W3("happy"), W3("very happy"), W2("glad"), W2("proud")),
    CHOICE("sad", W3("sad"), W3("very sad"), W2("worried")),
    CHOICE("new", W3("new"), W2("pretty"), W2("big"), W2("little"), W2("shiny"), W1("fine")),
    CHOICE("thing", W4("a {new} {c=colour} {t=toy}"), W1("{new} {c=colour} {t=clothes}")),
    CHOICE("hug", W3("hug"), W3("big hug"), W2("kiss"), W2("smile"), W1("cookie")),
    CHOICE("tasty", W3("good"), W2("great"), W2("sweet"), W2("wonderful"), W1("strange")),
    CHOICE("sea", W1("the sea"), W1("the stars"), W1("the moon"), W1("the sky"), W1("the snow"),
           W1("the sun"), W1("the birds"), W1("the clouds")),
    CHOICE("said", W4("said"), W2("called"), W2("whispered"), W2("laughed")),
    CHOICE("often", W2("every day"), W2("every morning"), W2("all the time"), W2("for a long time"),
           W1("after school")),
    CHOICE("soon", W2("after a while"), W1("soon"), W1("a little later")),
    CHOICE("Soon", W2("Soon"), W2("At last"), W2("After a while"), W2("A little later")),
    CHOICE("happily", W2("happily"), W2("quickly"), W2("slowly"), W2("quietly"), W2("proudly")),
    CHOICE("came", W1("came by"), W1("heard it")),
    CHOICE("fresh", W1("fresh"), W1("tasty"), W1("sweet"), W1("good"), W1("hot")),
    CHOICE("sweet", W2("sweet"), W2("fresh"), W2("good"), W1("pretty"), W1("little")),
    CHOICE("kind", W2("kind"), W2("young"), W1("clever"), W1("funny")),
    CHOICE("tiny", W1("tiny"), W1("small"), W1("little")),
    CHOICE("wide", W1("wide"), W1("big")),
    CHOICE("fun", W2("fun"), W2("great"), W1("wonderful")),
    CHOICE("strange", W1("strange"), W1("small"), W1("funny")),
    CHOICE("big", W1("big"), W1("old"), W1("little")),
    CHOICE("sang", W1("sang a song"), W1("read a book"), W1("drank some milk")),
};

/* --- beats --- */

enum beat {
    START, SOLO, OUT, PAIR,
    LOST, LOST_GONE, OUT_LOST, LOST_LOOK, LOST_HELP, LOST_TELL, LOST_FIND, LOST_THANK, LOST_END,
    BOX, BOX_TRY, BOX_FIT, BOX_TOO_BIG, BOX_TOO_SMALL, BOX_NEW_THING, BOX_NEW_BOX, BOX_END,
    COOK, COOK_WAIT, COOK_OUT, COOK_EAT, COOK_WASH, COOK_END,
    ANIMAL_MEET, ANIMAL_NEED, ANIMAL_HELP, ANIMAL_BETTER, ANIMAL_NAME, ANIMAL_END,
    TRADE, TRADE_ASK, TRADE_DO, TRADE_NOW, TRADE_PLAY, TRADE_END,
    SHARE, SHARE_GIVE, SHARE_COUNT, SHARE_THANK, SHARE_END,
    RACE, RACE_WHO, RACE_WON, RACE_TALK, RACE_PRIZE, RACE_END,
    HIDE, HIDE_COUNT, HIDE_LOOK, HIDE_FOUND, HIDE_END,
    GIFT, GIFT_WRAP, GIFT_OPEN, GIFT_THANK, GIFT_END,
    END_SOLO, END_PAIR, BEATS
};
#define END STORY_END
#define SWAP "{w:h}{h:f}{f:w}" /* the friend is the hero from here on */
#define BEAT(id, ...) [id] = CHOICE(#id, __VA_ARGS__)

static const struct story_choice beats[BEATS] = {
    BEAT(START,
        {4, "Once upon a time, there was a {trait} {child}.", SOLO},
        {3, "Once there was a {trait} {child} who liked {hobby}.", SOLO},
        {3, "In a {small} house near the {p=place} lived a {trait} {child}.", SOLO},
        {4, "One {weather} {weekday} {hour}, {h=person} went to the {p=place}.", OUT},
        {3, "One {weather} {weekday} {hour}, {h=person} was {p=place.at}.", OUT},
        {2, "{pair} were {friends}.", PAIR},
        {2, "One {weather} {weekday} {hour}, {met} {p=place.at}.", PAIR},
        {2, "One {weather} {weekday} {hour}, {pair} went to the {p=place}.", PAIR}),
    BEAT(SOLO, {3, "", LOST}, {3, "", BOX}, {3, "", COOK}),
    BEAT(OUT,
        {3, "", ANIMAL_MEET},
        {1, "{h.He} had {h.his} {new} {c=colour} {t=toy} with {h.him}.", OUT_LOST}),
    BEAT(PAIR, {2, "", TRADE}, {3, "", SHARE}, {3, "", RACE}, {2, "", HIDE}, {3, "", GIFT}),

    /* Something is lost and a friend finds it. Recalled: the thing, its colour, where it was not. */
    BEAT(LOST,
        {3, "{h.He} had {thing}, and {h.he} {t.played} {t.it} {often}.", LOST_GONE},
        {3, "{h.His} {relative} gave {h.him} {thing} for {h.his} birthday.", LOST_GONE},
        {2, "{h.He} loved to {t=toy.play} {h.his} {new} {c=colour} {t} {often}.", LOST_GONE}),
    BEAT(LOST_GONE,
        {3, "But one {weather} {hour}, the {t} {t.was} gone.", LOST_LOOK},
        {2, "But then {h.he} lost {t.it} {place.at}.", LOST_LOOK},
        {2, "But one {hour}, {h.he} could not find {t.it}.", LOST_LOOK}),
    BEAT(OUT_LOST,
        {3, "But {soon}, the {t} {t.was} gone.", LOST_LOOK},
        {2, "But {soon}, {h.he} lost {t.it}.", LOST_LOOK}),
    BEAT(LOST_LOOK,
        {3, "{h.He} looked behind the {x=spot} and the {y=spot!x}, but {t.they} {t.was} not there.",
            LOST_HELP},
        {2, "{h.He} was {sad} and looked behind the {x=spot} and the {y=spot!x}.", LOST_HELP},
        {2, "{h.He} looked for {t.it} behind the {x=spot} and the {y=spot!x}.", LOST_HELP}),
    BEAT(LOST_HELP,
        {3, "\"What is wrong?\" asked a {kind} {b=helper}.", LOST_TELL},
        {2, "Then a {kind} {b=helper} {came} and wanted to help.", LOST_FIND},
        {2, "So {h.he} asked a {kind} {b=helper} for help.", LOST_FIND}),
    BEAT(LOST_TELL,
        {3, "\"I lost my {c} {t},\" {said} {h}.", LOST_FIND},
        {2, "\"My {t} {t.is} as {c} as {c.rose},\" {said} {h}.", LOST_FIND}),
    BEAT(LOST_FIND,
        {3, "{Soon}, the {b} found {t.it} behind the {s=spot!xy}.", LOST_THANK},
        {2, "The {b} looked behind the {s=spot!xy}, and there {t.they} {t.was}!", LOST_THANK},
        {2, "\"Look, {t.they} {t.is} behind the {s=spot!xy}!\" {said} the {b}.", LOST_THANK}),
    BEAT(LOST_THANK,
        {3, "{h} was {happy} and gave {b.him} a {hug}.", LOST_END},
        {2, "\"Thank you for your help,\" {said} {h}.", LOST_END},
        {2, "\"You are a {good} friend,\" {h.he} {said}.", LOST_END}),
    BEAT(LOST_END,
        {2, "After that, {h} never lost the {c} {t} again.", END},
        {2, "From then on, {h} kept the {t} in a {size} {container}.", END},
        {2, "Then {h.he} took the {c} {t} home {happily}.", END},
        {3, "", END_SOLO}),

    /* It does not fit: what was too big, what was too small? */
    BEAT(BOX,
        {3, "{h.He} had a {new} {c=colour} {t=smalltoy} and a {k=container}.", BOX_TRY},
        {3, "{h.His} {relative} gave {h.him} a {c=colour} {t=smalltoy} and a {new} {k=container}.", BOX_TRY}),
    BEAT(BOX_TRY,
        {3, "One {weather} {hour}, {h.he} wanted to put the {t} in the {k}.", BOX_FIT},
        {2, "{h.He} {happily} tried to put the {t} in the {k}.", BOX_FIT}),
    BEAT(BOX_FIT,
        {2, "But the {t} did not fit in the {k} because it was too big.", BOX_TOO_BIG},
        {2, "But the {t} did not fit in the {k} because it was too small.", BOX_TOO_SMALL},
        {1, "But the {k} could not hold the {t} because it was too big.", BOX_TOO_BIG},
        {1, "But the {k} could not hold the {t} because it was too small.", BOX_TOO_SMALL}),
    BEAT(BOX_TOO_BIG,
        {2, "So {h.he} looked for a smaller {t} {place.at}.", BOX_NEW_THING},
        {2, "\"I need a smaller {t},\" {h.he} {said}.", BOX_NEW_THING}),
    BEAT(BOX_TOO_SMALL,
        {2, "So {h.he} looked for a bigger {k} {place.at}.", BOX_NEW_BOX},
        {2, "\"I need a bigger {k},\" {h.he} {said}.", BOX_NEW_BOX}),
    BEAT(BOX_NEW_THING,
        {2, "{Soon}, a {kind} {b=helper} came with a small {t}, and it went in.", BOX_END},
        {2, "{h.He} found a {tiny} {t} and gave the {c} {t} to a {kind} {b=helper}.", BOX_END}),
    BEAT(BOX_NEW_BOX,
        {2, "{Soon}, a {kind} {b=helper} came with a big {k}, and the {c} {t} went in.", BOX_END},
        {2, "A {kind} {b=helper} gave {h.him} a {wide} {k}, and the {c} {t} went in.", BOX_END}),
    BEAT(BOX_END,
        {2, "\"Thank you for your help,\" {h.he} {said}.", END_SOLO},
        {2, "\"That was {fun},\" {said} the {b}.", END_SOLO},
        {2, "{h} was {happy} and gave {b.him} a {hug}.", END_SOLO},
        {1, "", END_SOLO}),

    /* Cooking: what tasted good, what was empty? */
    BEAT(COOK,
        {3, "{h.He} wanted to make {fresh} {o=food} for {h.his} {r=elder}.", COOK_WAIT},
        {3, "{h.His} {r=elder} was hungry, so {h.he} made {fresh} {o=food}.", COOK_WAIT},
        {2, "One {weather} {hour}, {h.he} helped {h.his} {r=elder} make {fresh} {o=food}.", COOK_WAIT}),
    BEAT(COOK_WAIT,
        {3, "{h.He} put it in the {o.pot} and waited for {n=many} minutes.", COOK_OUT},
        {2, "It had to be in the {o.pot} for {n=many} minutes.", COOK_OUT}),
    BEAT(COOK_OUT,
        {3, "After {n} minutes, the {o} came out of the {o.pot} and it tasted {tasty}.", COOK_EAT},
        {2, "After {n} minutes, {h.he} took the {o} out of the {o.pot} and it smelled {tasty}.", COOK_EAT},
        {2, "After {n} minutes, the {o} came out of the {o.pot} and it was empty.", COOK_WASH},
        {1, "After {n} minutes, {h.he} took the {o} out of the {o.pot} and it was dirty.", COOK_WASH}),
    BEAT(COOK_EAT,
        {2, "{r.He} ate {m=several} plates of {o}.", COOK_END},
        {2, "\"May I have more {o}?\" {r.he} asked.", COOK_END},
        {2, "They {happily} ate all of the {o}.", COOK_END}),
    BEAT(COOK_WASH,
        {2, "So {h.he} washed the {o.pot} while {h.his} {r} ate the {o}.", COOK_END},
        {2, "\"We have to wash the {o.pot},\" {r.he} {said}.", COOK_END},
        {2, "They {happily} cleaned the {o.pot} together.", COOK_END}),
    BEAT(COOK_END,
        {2, "\"You are a {good} cook, {h},\" {r.he} {said}.", END_SOLO},
        {2, "{h.His} {r} thanked {h.him} and gave {h.him} a {hug}.", END_SOLO},
        {2, "\"That was {fun},\" {said} {h}.", END_SOLO},
        {2, "", END_SOLO}),

    /* An animal needs something. */
    BEAT(ANIMAL_MEET,
        {3, "There {h.he} saw a {size} {c=fur} {a=animal} behind the {spot}.", ANIMAL_NEED},
        {2, "A {size} {c=fur} {a=animal} sat behind the {spot}.", ANIMAL_NEED},
        {2, "{Soon}, {h.he} heard a {strange} noise and found a {c=fur} {a=animal}.", ANIMAL_NEED}),
    BEAT(ANIMAL_NEED,
        {3, "The {a} was very {v=need}.", ANIMAL_HELP},
        {2, "It looked {sad} and {v=need}.", ANIMAL_HELP},
        {2, "\"Are you {v=need}?\" {h.he} asked.", ANIMAL_HELP}),
    BEAT(ANIMAL_HELP,
        {3, "{h.He} felt sorry for the {a} and gave it {v.help}.", ANIMAL_BETTER},
        {2, "So {h.he} ran home and came back with {v.help}.", ANIMAL_BETTER},
        {2, "\"Here is {v.help} for you,\" {h.he} {said}.", ANIMAL_BETTER}),
    BEAT(ANIMAL_BETTER,
        {3, "{Soon}, the {a} was not {v} any more and {a.sang} {happily}.", ANIMAL_NAME},
        {2, "The {c} {a} {a.sang} and followed {h.him} home.", ANIMAL_NAME},
        {2, "Now it was no longer {v}, and it {a.sang} {happily}.", ANIMAL_NAME}),
    BEAT(ANIMAL_NAME,
        {3, "{h} named the {a} {e=pet}.", ANIMAL_END},
        {2, "\"I will call you {e=pet},\" {said} {h}.", ANIMAL_END},
        {2, "{h.He} called it {e=pet}.", ANIMAL_END}),
    BEAT(ANIMAL_END,
        {2, "From that day on, {h} and {e} were {friends}.", END},
        {2, "Every {hour}, {h.he} played with {e} {place.at}.", END},
        {2, "At home, {h.he} told {h.his} {relative} all about {e} the {a}.", END},
        {2, "Now {e} sleeps next to {h.his} {size} bed every night.", END},
        {2, "", END_SOLO}),

    /* A trade: who has what now? */
    BEAT(TRADE,
        {3, "{h} had a {new} {c=colour} {t=toy}, and {f} had {sweet} {q=treat}.", TRADE_ASK},
        {3, "{f} had a {new} {c=colour} {t=toy}, and {h} had {sweet} {q=treat}." SWAP, TRADE_ASK}),
    BEAT(TRADE_ASK,
        {2, "\"I like your {q},\" {said} {h}.", TRADE_DO},
        {2, "\"May I have your {t}?\" asked {f}.", TRADE_DO},
        {2, "{h} wanted the {q}, and {f} wanted the {t}.", TRADE_DO}),
    BEAT(TRADE_DO,
        {2, "So {h} gave {f.him} the {c} {t} and took the {q}.", TRADE_NOW},
        {2, "So they {happily} made a trade.", TRADE_NOW}),
    BEAT(TRADE_NOW,
        {2, "Now {h} had the {q}, and {f} had the {t}.", TRADE_PLAY},
        {2, "Now {f} had the {t}, and {h} had the {q}.", TRADE_PLAY}),
    BEAT(TRADE_PLAY,
        {2, "{h} {happily} ate the {q}.", TRADE_END},
        {2, "{f} {t.played} the {t} {often}.", TRADE_END}),
    BEAT(TRADE_END,
        {2, "The {t} {t.was} as {c} as {c.rose}, and {f} was {happy}.", END},
        {2, "At home, {f} showed the {c} {t} to {f.his} {relative}.", END},
        {3, "", END_PAIR}),

    /* Sharing: how many are left? */
    BEAT(SHARE,
        {3, "{h} had {n=many} {sweet} {q=treat}, but {f} had none.", SHARE_GIVE},
        {3, "{f} had {n=many} {sweet} {q=treat}, but {h} had none." SWAP, SHARE_GIVE},
        {2, "{h} found {n=many} {q=treat} behind the {spot}, but {f} found none.", SHARE_GIVE},
        {2, "{f} found {n=many} {q=treat} behind the {spot}, but {h} found none." SWAP, SHARE_GIVE}),
    BEAT(SHARE_GIVE,
        {3, "{f} was {sad}, so {h} gave {f.him} {m=few} of the {q}.", SHARE_COUNT},
        {2, "\"You can have {m=few} of my {q},\" {said} {h}.", SHARE_COUNT},
        {2, "So {h} {happily} gave {f.him} {m=few} of the {n} {q}.", SHARE_COUNT}),
    BEAT(SHARE_COUNT,
        {3, "Now {f} had {m}, and {h} had {n-m}.", SHARE_THANK},
        {2, "Then {h} had {n-m} {q} left.", SHARE_THANK},
        {2, "{h} counted the rest and still had {n-m}.", SHARE_THANK}),
    BEAT(SHARE_THANK,
        {2, "\"Thank you for the {q},\" {said} {f}.", SHARE_END},
        {2, "{f} was {happy} and gave {h.him} a {hug}.", SHARE_END},
        {2, "They put all the {q} in a {size} {container}.", SHARE_END}),
    BEAT(SHARE_END,
        {2, "At home, {f} showed {f.his} {q} to {f.his} {relative}.", END},
        {3, "", END_PAIR}),

    /* A race: who is faster wins. */
    BEAT(RACE,
        {3, "They wanted to race to the {big} {g=goal}.", RACE_WHO},
        {1, "\"Let us race to the {g=goal}!\" {said} {h}.", RACE_WHO},
        {1, "\"Let us race to the {g=goal}!\" {said} {f}.", RACE_WHO}),
    BEAT(RACE_WHO,
        {2, "But {h} was faster than {f}.{w:h}{l:f}", RACE_WON},
        {2, "But {f} was faster than {h}.{w:f}{l:h}", RACE_WON},
        {1, "But {h} was slower than {f}.{w:f}{l:h}", RACE_WON},
        {1, "But {f} was slower than {h}.{w:h}{l:f}", RACE_WON},
        {1, "On the way, {h} stopped to look at a {size} {animal}.{w:f}{l:h}", RACE_WON},
        {1, "On the way, {f} stopped to look at a {size} {animal}.{w:h}{l:f}", RACE_WON}),
    BEAT(RACE_WON,
        {3, "So {w} won the race, and {l} came second.", RACE_TALK},
        {2, "So {w} was the first at the {g}.", RACE_TALK},
        {2, "When {l} came to the {g}, {w} was there already.", RACE_TALK}),
    BEAT(RACE_TALK,
        {2, "\"You are very fast,\" {said} {l}.", RACE_PRIZE},
        {2, "{l} was {sad}, so {w} gave {l.him} a {hug}.", RACE_PRIZE}),
    BEAT(RACE_PRIZE,
        {3, "{w} got a {new} {c=colour} {t=toy} for the first place.", RACE_END},
        {2, "The prize for {w} was a {new} {c=colour} {t=toy}.", RACE_END},
        {2, "", END_PAIR}),
    BEAT(RACE_END,
        {2, "It was as {c} as {c.rose}, and {w} was {happy}.", END},
        {2, "{w} {happily} took the {c} {t} home.", END},
        {2, "Then they {t.played} the {t} together {often}.", END}),

    /* Hide and seek: where was the friend? */
    BEAT(HIDE,
        {2, "They {happily} played hide and seek.", HIDE_COUNT},
        {1, "\"Let us play hide and seek,\" {said} {f}.", HIDE_COUNT},
        {1, "\"Let us play hide and seek,\" {said} {h}.", HIDE_COUNT}),
    BEAT(HIDE_COUNT,
        {1, "{h} counted to {n=many}, and {f} hid {i=hideout}.", HIDE_LOOK},
        {1, "{f} counted to {n=many}, and {h} hid {i=hideout}." SWAP, HIDE_LOOK},
        {1, "{f} hid {i=hideout} while {h} counted to {n=many}.", HIDE_LOOK},
        {1, "{h} hid {i=hideout} while {f} counted to {n=many}." SWAP, HIDE_LOOK}),
    BEAT(HIDE_LOOK,
        {3, "After {n}, {h} looked behind the {x=spot} and the {y=spot!x}.", HIDE_FOUND},
        {2, "First {h} looked behind the {spot}, but {f} was not there.", HIDE_FOUND}),
    BEAT(HIDE_FOUND,
        {3, "{Soon}, {h} found {f.him} {i}.", HIDE_END},
        {2, "Then {h} heard a {strange} noise and found {f.him} {i}.", HIDE_END},
        {2, "\"You are {i}!\" {said} {h}.", HIDE_END}),
    BEAT(HIDE_END,
        {2, "\"That was {fun},\" {said} {f}.", END_PAIR},
        {2, "{f} was {happy} and gave {h.him} a {hug}.", END_PAIR},
        {1, "", END_PAIR}),

    /* A present: what is in the box? */
    BEAT(GIFT,
        {2, "It was the birthday of {f}, so {h} got {f.him} {thing}.", GIFT_WRAP},
        {2, "It was the birthday of {h}, so {f} got {h.him} {thing}." SWAP, GIFT_WRAP},
        {1, "{f} wanted {thing}, and {h} knew it.", GIFT_WRAP},
        {1, "{h} wanted {thing}, and {f} knew it." SWAP, GIFT_WRAP},
        {1, "\"I want to give you {thing},\" {said} {h}.", GIFT_WRAP},
        {1, "\"I want to give you {thing},\" {said} {f}." SWAP, GIFT_WRAP}),
    BEAT(GIFT_WRAP,
        {3, "{h} put the {t} in a {size} {k=container}.", GIFT_OPEN},
        {2, "{Soon}, {h} came with a {size} {k=container}.", GIFT_OPEN}),
    BEAT(GIFT_OPEN,
        {3, "{f} {happily} opened the {k} and saw the {c} {t}.", GIFT_THANK},
        {2, "\"What is in the {k}?\" asked {f}.", GIFT_THANK},
        {2, "\"Look, the {k} is for you,\" {said} {h}.", GIFT_THANK}),
    BEAT(GIFT_THANK,
        {3, "\"Thank you for the {t}!\" {said} {f}.", GIFT_END},
        {2, "{f} was {happy} and gave {h.him} a {hug}.", GIFT_END},
        {2, "{f} loved the {t} and showed {t.it} to {f.his} {relative}.", GIFT_END}),
    BEAT(GIFT_END,
        {2, "From that day on, {f} {t.played} the {c} {t} {often}.", END},
        {2, "{f} kept the {c} {t} in the {k}.", END},
        {2, "The {t} {t.was} as {c} as {c.rose}, and {f} was {happy}.", END},
        {3, "", END_PAIR}),

    BEAT(END_SOLO,
        {3, "{h} was {happy}.", END},
        {3, "That night, {h.he} dreamed of {sea}.", END},
        {2, "It was a {good} day for {h}.", END},
        {2, "Then {h.he} {sang} and went to bed.", END}),
    BEAT(END_PAIR,
        {3, "{h} and {f} were {happy}.", END},
        {2, "Then they {happily} went home together.", END},
        {2, "It was a {good} day for {h} and {f}.", END},
        {2, "From that day on, they were {friends}.", END},
        {2, "Then they sat behind the {spot} and looked at {sea}.", END}),
};
// clang-format on

const struct story_grammar story_grammar = {
    .tables = tables,
    .lists = lists,
    .list_count = ARRAY_LENGTH(lists),
    .phrases = phrases,
    .phrase_count = ARRAY_LENGTH(phrases),
    .beats = beats,
    .beat_count = BEATS,
    .register_table = registers,
};
