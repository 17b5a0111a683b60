/* The grammar of the stories: all words and sentences of the default corpus. How to read it: stories_impl.h.
 * Order: tables and lists, registers, phrases, beats (openings, one group for each plot, endings).
 *
 * Rules that keep it sound: a beat is followed only by later ones; nothing with a vowel follows "a"; two
 * derivations never give the same text (the test looks for them). */
#include "stories_impl.h"

// clang-format off

/* --- tables and lists --- */

enum table {
    PERSON, RELATIVE, THING, COLOUR, PLACE, SPOT, GOAL, CONTAINER, NUMBER, TREAT, FOOD, ANIMAL, NEED, PET,
    TABLES
};

static const char *const person[] = { /* girls, then boys */
    "Anna|she|her|her", "Mia|she|her|her", "Lily|she|her|her", "Emma|she|her|her",
    "Zoe|she|her|her",  "Ella|she|her|her", "Lucy|she|her|her", "Nora|she|her|her",
    "Ben|he|him|his", "Tom|he|him|his", "Max|he|him|his", "Leo|he|him|his",
    "Sam|he|him|his", "Jack|he|him|his", "Tim|he|him|his", "Finn|he|him|his",
};
static const char *const relative[] = {
    "mother|she|her", "grandmother|she|her", "aunt|she|her", "sister|she|her",
    "father|he|him", "grandfather|he|him", "uncle|he|him", "brother|he|him",
};
static const char *const thing[] = { /* toys, then clothes */
    "ball|it|it|was|is|throw|threw", "kite|it|it|was|is|fly|flew", "drum|it|it|was|is|play|played",
    "boat|it|it|was|is|sail|sailed", "doll|it|it|was|is|dress|dressed", "bear|it|it|was|is|hug|hugged",
    "book|it|it|was|is|read|read", "train|it|it|was|is|push|pushed", "bike|it|it|was|is|ride|rode",
    "sled|it|it|was|is|pull|pulled",
    "boots|they|them|were|are|wear|wore", "socks|they|them|were|are|wear|wore",
    "gloves|they|them|were|are|wear|wore", "shoes|they|them|were|are|wear|wore",
};
static const char *const colour[] = {"red", "blue", "green", "purple", "yellow", "white", "black", "brown"};
static const char *const place[] = {
    "park|in the park", "garden|in the garden", "forest|in the forest", "farm|on the farm",
    "lake|at the lake", "river|by the river", "village|in the village", "hill|on the hill",
    "beach|on the beach", "zoo|at the zoo",
};
static const char *const spot[] = {
    "under a bench", "behind a tree", "in the grass", "behind a rock", "under a bush",
    "behind a wall", "in a hole", "near the gate", "under the bridge", "next to the road",
};
static const char *const goal[] = {"bridge", "gate", "old tree", "well", "mill", "fence", "house", "road"};
static const char *const container[] = {"box", "bag", "basket", "bucket", "chest", "trunk"};
static const char *const number[] = {"one", "two", "three", "four", "five", "six", "seven", "eight", "nine"};
static const char *const treat[] = {
    "apples", "pears", "cookies", "shells", "stones", "flowers", "nuts", "buttons", "berries", "eggs",
};
static const char *const food[] = {
    "soup|pot", "rice|pot", "stew|pot", "pasta|pot", "pizza|oven", "cake|oven", "pie|oven", "bread|oven",
};
static const char *const animal[] = {
    "dog", "cat", "duck", "bird", "rabbit", "frog", "mouse", "fox", "pony", "goat",
};
static const char *const need[] = {
    "hungry|some bread", "thirsty|some water", "cold|a warm blanket", "tired|a soft pillow",
    "bored|a rubber ball",
};
static const char *const pet[] = {"Rex", "Coco", "Spot", "Lucky", "Fluffy", "Pepper", "Star", "Pip"};

#define TABLE(columns, rows) {columns, rows, ARRAY_LENGTH(rows)}
static const struct story_table tables[TABLES] = {
    [PERSON]    = TABLE("name|he|him|his", person),
    [RELATIVE]  = TABLE("name|he|him", relative),
    [THING]     = TABLE("name|they|it|was|is|play|played", thing),
    [COLOUR]    = TABLE("name", colour),
    [PLACE]     = TABLE("name|at", place),
    [SPOT]      = TABLE("name", spot),
    [GOAL]      = TABLE("name", goal),
    [CONTAINER] = TABLE("name", container),
    [NUMBER]    = TABLE("name", number),
    [TREAT]     = TABLE("name", treat),
    [FOOD]      = TABLE("name|pot", food),
    [ANIMAL]    = TABLE("name", animal),
    [NEED]      = TABLE("name|help", need),
    [PET]       = TABLE("name", pet),
};
static const struct story_list lists[] = {
    {"person", PERSON, 0, 16}, {"girl", PERSON, 0, 8}, {"boy", PERSON, 8, 8},
    {"relative", RELATIVE, 0, 8},
    {"toy", THING, 0, 10}, {"smalltoy", THING, 0, 8}, {"clothes", THING, 10, 4},
    {"colour", COLOUR, 0, 8}, {"fur", COLOUR, 4, 4}, {"place", PLACE, 0, 10},
    {"spot", SPOT, 0, 10}, {"goal", GOAL, 0, 8},
    {"container", CONTAINER, 0, 6},
    {"few", NUMBER, 0, 3}, {"several", NUMBER, 1, 3},
    {"many", NUMBER, 4, 5}, /* at least two are left: "apples" stays right */
    {"treat", TREAT, 0, 10}, {"food", FOOD, 0, 8}, {"animal", ANIMAL, 0, 10}, {"need", NEED, 0, 5},
    {"pet", PET, 0, 8},
};

/* --- registers --- */

#define AT(letter) [letter - 'a']
static const int8_t registers[STORY_REGISTERS] = {
    AT('h') = PERSON + 1,    /* the hero */
    AT('f') = PERSON + 1,    /* the friend */
    AT('w') = PERSON + 1,    /* the winner of a race ... */
    AT('l') = PERSON + 1,    /* ... and who lost it */
    AT('r') = RELATIVE + 1,
    AT('t') = THING + 1,     /* the thing the story is about, and its colour */
    AT('c') = COLOUR + 1,
    AT('u') = THING + 1,     /* another thing, and the colour of something else */
    AT('d') = COLOUR + 1,
    AT('p') = PLACE + 1,
    AT('s') = SPOT + 1,      /* where something is */
    AT('x') = SPOT + 1,      /* where it is not */
    AT('y') = SPOT + 1,
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
    CHOICE("trait", W4("little"), W2("kind"), W2("clever"), W2("brave"), W2("quiet"), W1("funny"), W1("shy")),
    CHOICE("child", W1("girl named {h=girl}"), W1("boy named {h=boy}")),
    CHOICE("weather", W4("sunny"), W3("warm"), W2("cold"), W2("windy"), W2("cloudy"),
           W1("bright"), W1("foggy")),
    CHOICE("time", W4("day"), W4("morning"), W3("afternoon"), W1("evening")),
    CHOICE("hobby", W2("to sing"), W2("to dance"), W2("to paint"), W1("to swim"), W1("to climb trees"),
           W1("to tell jokes")),
    CHOICE("small", W3("small"), W2("big"), W1("tiny"), W1("white"), W1("quiet")),
    CHOICE("size", W3("small"), W2("little"), W2("big"), W1("tiny")),
    CHOICE("good", W4("good"), W2("great"), W2("wonderful"), W1("lovely")),
    CHOICE("friends", W4("good friends"), W3("best friends"), W1("close friends")),
    CHOICE("happy", W4("happy"), W2("very happy"), W2("glad"), W1("proud"), W1("full of joy")),
    CHOICE("sad", W4("sad"), W2("very sad"), W1("worried"), W1("upset")),
    CHOICE("new", W4("new"), W2("pretty"), W2("big"), W2("little"), W1("shiny")),
    CHOICE("thing", W4("a {new} {c=colour} {t=toy}"), W1("{new} {c=colour} {t=clothes}")),
    CHOICE("hug", W3("hug"), W2("big hug"), W1("kiss"), W1("smile")),
    CHOICE("tasty", W4("good"), W2("great"), W2("sweet"), W1("wonderful")),
    CHOICE("well", W3("very well"), W2("like a stone"), W1("until noon")),
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
    HIDE, HIDE_COUNT, HIDE_LOOK, HIDE_FOUND, HIDE_TURN, HIDE_END,
    GIFT, GIFT_WRAP, GIFT_OPEN, GIFT_THANK, GIFT_END,
    END_SOLO, END_PAIR, BEATS
};
#define END STORY_END
#define BEAT(id, ...) [id] = CHOICE(#id, __VA_ARGS__)

static const struct story_choice beats[BEATS] = {
    BEAT(START,
        {4, "Once upon a time, there was a {trait} {child}.", SOLO},
        {3, "Once there was a {trait} {child} who liked {hobby}.", SOLO},
        {3, "In a {small} house near the {p=place} lived a {trait} {child}.", SOLO},
        {4, "One {weather} {time}, {h=person} went to the {p=place}.", OUT},
        {3, "One {weather} {time}, {h=person} was {p=place.at}.", OUT},
        {4, "{h=person} and {f=person!h} were {friends}.", PAIR},
        {4, "One {weather} {time}, {h=person} met {f=person!h} {p=place.at}.", PAIR},
        {4, "One {weather} {time}, {h=person} and {f=person!h} went to the {p=place}.", PAIR}),
    BEAT(SOLO, {4, "", LOST}, {3, "", BOX}, {4, "", COOK}),
    BEAT(OUT,
        {3, "", ANIMAL_MEET},
        {1, "{h.He} had {h.his} {new} {c=colour} {t=toy} with {h.him}.", OUT_LOST}),
    BEAT(PAIR, {4, "", TRADE}, {4, "", SHARE}, {4, "", RACE}, {3, "", HIDE}, {4, "", GIFT}),

    /* Something is lost and a friend finds it. Recalled: the thing, its colour, where it was. */
    BEAT(LOST,
        {3, "{h.He} had {thing}, and {h.he} {t.played} {t.it} every day.", LOST_GONE},
        {3, "{h.His} {r=relative} gave {h.him} {thing}.", LOST_GONE},
        {2, "{h.He} loved to {t=toy.play} {h.his} {new} {c=colour} {t}.", LOST_GONE}),
    BEAT(LOST_GONE,
        {3, "But one {time}, the {t} {t.was} gone.", LOST_LOOK},
        {2, "But then {h.he} lost {t.it}.", LOST_LOOK},
        {2, "But one {time}, {h.he} could not find the {c} {t}.", LOST_LOOK}),
    BEAT(OUT_LOST,
        {3, "But after a while, the {t} {t.was} gone.", LOST_LOOK},
        {2, "But on the way, {h.he} lost {t.it}.", LOST_LOOK}),
    BEAT(LOST_LOOK,
        {3, "{h} looked {x=spot} and {y=spot!x}, but the {t} {t.was} not there.", LOST_HELP},
        {2, "{h.He} looked {x=spot} and {y=spot!x} and began to cry.", LOST_HELP},
        {2, "{h} was {sad}, for {t.they} {t.was} not {x=spot} or {y=spot!x}.", LOST_HELP}),
    BEAT(LOST_HELP,
        {3, "\"What is wrong?\" asked {f=person!h}.", LOST_TELL},
        {2, "Then {f=person!h} came by and asked what was wrong.", LOST_TELL},
        {2, "So {h} asked {f=person!h} for help.", LOST_TELL}),
    BEAT(LOST_TELL,
        {3, "\"I lost my {c} {t},\" said {h}.", LOST_FIND},
        {2, "\"I cannot find my {c} {t},\" said {h}.", LOST_FIND},
        {2, "{h} told {f} about the {c} {t}.", LOST_FIND}),
    BEAT(LOST_FIND,
        {3, "{f} looked {s=spot!xy}, and there {t.they} {t.was}!", LOST_THANK},
        {2, "At last, {f} found {t.it} {s=spot!xy}.", LOST_THANK},
        {2, "\"Look, {t.they} {t.is} {s=spot!xy}!\" said {f}.", LOST_THANK}),
    BEAT(LOST_THANK,
        {3, "{h} thanked {f} and gave {f.him} a {hug}.", LOST_END},
        {2, "\"Thank you, {f}!\" said {h}.", LOST_END},
        {2, "{h} was {happy} that {f} had found the {t} {s}.", LOST_END}),
    BEAT(LOST_END,
        {2, "After that, {h} never lost the {c} {t} again.", END},
        {2, "From then on, {h} kept the {t} in a {k=container}.", END},
        {2, "Then {h.he} took {h.his} {c} {t} home.", END},
        {3, "", END_PAIR}),

    /* It does not fit: what was too big, what was too small? */
    BEAT(BOX,
        {3, "{h.He} had a {new} {c=colour} {t=smalltoy} and a {k=container}.", BOX_TRY},
        {3, "{h.His} {r=relative} gave {h.him} a {c=colour} {t=smalltoy} and a {k=container}.", BOX_TRY}),
    BEAT(BOX_TRY,
        {3, "{h} wanted to put the {t} in the {k}.", BOX_FIT},
        {2, "One {time}, {h.he} tried to put the {t} in the {k}.", BOX_FIT}),
    BEAT(BOX_FIT,
        {2, "But the {t} did not fit in the {k} because it was too big.", BOX_TOO_BIG},
        {2, "But the {t} did not fit in the {k} because it was too small.", BOX_TOO_SMALL},
        {1, "But the {k} could not hold the {t} because it was too big.", BOX_TOO_BIG},
        {1, "But the {k} could not hold the {t} because it was too small.", BOX_TOO_SMALL}),
    BEAT(BOX_TOO_BIG,
        {2, "So {h.he} looked for a smaller {t}.", BOX_NEW_THING},
        {2, "\"I need a smaller {t},\" said {h}.", BOX_NEW_THING}),
    BEAT(BOX_TOO_SMALL,
        {2, "So {h.he} looked for a bigger {k}.", BOX_NEW_BOX},
        {2, "\"I need a bigger {k},\" said {h}.", BOX_NEW_BOX}),
    BEAT(BOX_NEW_THING,
        {2, "{h.His} friend {f=person!h} had a {d=colour!c} {t}, and {h} put it in the {k}.", BOX_END},
        {2, "{h.He} put a {d=colour!c} {t} in the {k} and gave the {c} {t} to {f=person!h}.", BOX_END}),
    BEAT(BOX_NEW_BOX,
        {2, "{h.His} friend {f=person!h} had a big {k}, and {h} put the {c} {t} in it.", BOX_END},
        {2, "{f=person!h} gave {h.him} a bigger {k}, and the {c} {t} went in.", BOX_END}),
    BEAT(BOX_END,
        {2, "\"Thank you for your help, {f},\" said {h}.", END_PAIR},
        {2, "Then {h} carried the {k} home.", END_SOLO},
        {3, "", END_PAIR}),

    /* Cooking: what tasted good, what was empty? */
    BEAT(COOK,
        {3, "{h.He} wanted to make some {o=food} for {h.his} {r=relative}.", COOK_WAIT},
        {3, "{h.His} {r=relative} was hungry, so {h.he} made some {o=food}.", COOK_WAIT},
        {2, "One {time}, {h.he} helped {h.his} {r=relative} make some {o=food}.", COOK_WAIT}),
    BEAT(COOK_WAIT,
        {3, "{h} put the {o} in the {o.pot} and waited for {n=many} minutes.", COOK_OUT},
        {2, "The {o} had to be in the {o.pot} for {n=many} minutes.", COOK_OUT}),
    BEAT(COOK_OUT,
        {3, "After {n} minutes, the {o} came out of the {o.pot} and it tasted {tasty}.", COOK_EAT},
        {2, "After {n} minutes, {h} took the {o} out of the {o.pot} and it smelled {tasty}.", COOK_EAT},
        {2, "After {n} minutes, the {o} came out of the {o.pot} and it was empty.", COOK_WASH},
        {1, "After {n} minutes, {h} took the {o} out of the {o.pot} and it was dirty.", COOK_WASH}),
    BEAT(COOK_EAT,
        {2, "{h.His} {r} ate {m=several} plates of {o}.", COOK_END},
        {2, "\"May I have more {o}?\" asked {h.his} {r}.", COOK_END},
        {2, "{h} and {h.his} {r} ate all of the {o}.", COOK_END}),
    BEAT(COOK_WASH,
        {2, "So {h} washed the {o.pot} while {h.his} {r} ate the {o}.", COOK_END},
        {2, "\"We have to wash the {o.pot},\" said {h.his} {r}.", COOK_END},
        {2, "{h} and {h.his} {r} cleaned the {o.pot} together.", COOK_END}),
    BEAT(COOK_END,
        {2, "\"You are a good cook, {h},\" said the {r}.", END_SOLO},
        {2, "The {r} thanked {h} and gave {h.him} a {hug}.", END_SOLO},
        {2, "\"That was fun,\" said {h}.", END_SOLO},
        {2, "", END_SOLO}),

    /* An animal needs something. */
    BEAT(ANIMAL_MEET,
        {3, "There {h.he} saw a {size} {c=fur} {a=animal} {s=spot}.", ANIMAL_NEED},
        {2, "A {size} {c=fur} {a=animal} sat {s=spot}.", ANIMAL_NEED},
        {2, "There {h.he} heard a noise and found a {c=fur} {a=animal} {s=spot}.", ANIMAL_NEED}),
    BEAT(ANIMAL_NEED,
        {3, "The {a} was very {v=need}.", ANIMAL_HELP},
        {2, "The poor {a} looked {v=need}.", ANIMAL_HELP},
        {2, "\"Are you {v=need}?\" asked {h}.", ANIMAL_HELP}),
    BEAT(ANIMAL_HELP,
        {3, "{h} felt sorry for the {a} and gave it {v.help}.", ANIMAL_BETTER},
        {2, "So {h} ran home and came back with {v.help}.", ANIMAL_BETTER},
        {2, "\"Here is {v.help} for you,\" said {h}.", ANIMAL_BETTER}),
    BEAT(ANIMAL_BETTER,
        {3, "Soon the {c} {a} was not {v} any more.", ANIMAL_NAME},
        {2, "The {c} {a} was {happy} and followed {h.him} home.", ANIMAL_NAME},
        {2, "Now the {a} was no longer {v}, and it did not want to leave.", ANIMAL_NAME}),
    BEAT(ANIMAL_NAME,
        {3, "{h} named the {a} {e=pet}.", ANIMAL_END},
        {2, "\"I will call you {e=pet},\" said {h}.", ANIMAL_END},
        {2, "{h.He} called it {e=pet}.", ANIMAL_END}),
    BEAT(ANIMAL_END,
        {2, "From that day on, {h} and {e} were {friends}.", END},
        {2, "Every {time}, {h} went back to the {p} with {e}.", END},
        {2, "At home, {h} told {h.his} {r=relative} all about {e} the {a}.", END},
        {2, "Now {e} sleeps next to {h} every night.", END},
        {2, "", END_SOLO}),

    /* A trade: who has what now? */
    BEAT(TRADE,
        {3, "{h} had a {c=colour} {t=toy}, and {f} had a {d=colour!c} {u=toy!t}.", TRADE_ASK}),
    BEAT(TRADE_ASK,
        {2, "\"I like your {u},\" said {h}.", TRADE_DO},
        {2, "\"May I have your {t}?\" asked {f}.", TRADE_DO},
        {2, "{h} wanted the {u}, and {f} wanted the {t}.", TRADE_DO}),
    BEAT(TRADE_DO,
        {2, "So {h} gave {f} the {t}, and {f} gave {h} the {u}.", TRADE_NOW},
        {1, "So they made a trade.", TRADE_NOW}),
    BEAT(TRADE_NOW,
        {2, "Now {h} had the {d} {u}, and {f} had the {c} {t}.", TRADE_PLAY},
        {2, "Now {f} had the {c} {t}, and {h} had the {d} {u}.", TRADE_PLAY}),
    BEAT(TRADE_PLAY,
        {2, "{h} {u.played} the {u} all {time}.", TRADE_END},
        {2, "{f} {t.played} the {t} all {time}.", TRADE_END}),
    BEAT(TRADE_END,
        {2, "At home, {h} showed the {d} {u} to {h.his} {r=relative}.", END},
        {2, "At home, {f} showed the {c} {t} to {f.his} {r=relative}.", END},
        {3, "", END_PAIR}),

    /* Sharing: how many are left? */
    BEAT(SHARE,
        {3, "{h} had {n=many} {q=treat}, but {f} had none.", SHARE_GIVE},
        {2, "{h} found {n=many} {q=treat} {s=spot}, but {f} found none.", SHARE_GIVE}),
    BEAT(SHARE_GIVE,
        {3, "{f} was {sad}, so {h} gave {f.him} {m=few} of the {q}.", SHARE_COUNT},
        {2, "\"You can have {m=few} of my {q},\" said {h}.", SHARE_COUNT},
        {2, "So {h} gave {m=few} of {h.his} {n} {q} to {f}.", SHARE_COUNT}),
    BEAT(SHARE_COUNT,
        {3, "Now {f} had {m}, and {h} had {n-m}.", SHARE_THANK},
        {2, "Then {h} had {n-m} {q} left.", SHARE_THANK},
        {2, "{h} counted the rest and still had {n-m} {q}.", SHARE_THANK}),
    BEAT(SHARE_THANK,
        {2, "\"Thank you for the {q}, {h},\" said {f}.", SHARE_END},
        {2, "{f} thanked {h.him} and gave {h.him} a {hug}.", SHARE_END},
        {2, "They put all the {q} in a {k=container}.", SHARE_END}),
    BEAT(SHARE_END,
        {2, "At home, {f} showed {f.his} {q} to {f.his} {r=relative}.", END},
        {3, "", END_PAIR}),

    /* A race: who is faster wins. */
    BEAT(RACE,
        {3, "They wanted to race to the {g=goal}.", RACE_WHO},
        {2, "\"Let us race to the {g=goal}!\" said {h}.", RACE_WHO},
        {2, "\"I can run to the {g=goal} faster than you,\" said {f}.", RACE_WHO}),
    BEAT(RACE_WHO,
        {2, "But {h} was faster than {f}.{w:h}{l:f}", RACE_WON},
        {2, "But {h} was slower than {f}.{w:f}{l:h}", RACE_WON},
        {1, "On the way, {h} fell down.{w:f}{l:h}", RACE_WON},
        {1, "On the way, {f} fell down.{w:h}{l:f}", RACE_WON},
        {1, "On the way, {h} stopped to look at a {a=animal}.{w:f}{l:h}", RACE_WON},
        {1, "On the way, {f} stopped to look at a {a=animal}.{w:h}{l:f}", RACE_WON}),
    BEAT(RACE_WON,
        {3, "So {w} won the race, and {l} came second.", RACE_TALK},
        {2, "So {w} was the first at the {g}.", RACE_TALK},
        {2, "When {l} came to the {g}, {w} was there already.", RACE_TALK}),
    BEAT(RACE_TALK,
        {2, "\"You are very fast, {w},\" said {l}.", RACE_PRIZE},
        {2, "\"Good race, {l},\" said {w}.", RACE_PRIZE},
        {2, "{l} was {sad}, so {w} gave {l.him} a {hug}.", RACE_PRIZE}),
    BEAT(RACE_PRIZE,
        {3, "{w} got a {new} {c=colour} {t=toy} for the first place.", RACE_END},
        {2, "The prize for {w} was a {c=colour} {t=toy}.", RACE_END},
        {2, "", END_PAIR}),
    BEAT(RACE_END,
        {2, "{w} let {l} {t.play} the {c} {t} too.", END_PAIR},
        {2, "{w} took the {c} {t} home and showed it to {w.his} {r=relative}.", END},
        {2, "Then {w} and {l} {t.played} the {t} together.", END}),

    /* Hide and seek: where was the friend? */
    BEAT(HIDE, 
        {1, "They played hide and seek.", HIDE_COUNT},
        {1, "\"Let us play hide and seek,\" said {f}.", HIDE_COUNT}),
    BEAT(HIDE_COUNT,
        {2, "{h} counted to {n=many}, and {f} hid {s=spot}.", HIDE_LOOK},
        {2, "{f} hid {s=spot} while {h} counted to {n=many}.", HIDE_LOOK}),
    BEAT(HIDE_LOOK,
        {3, "After {n}, {h} looked {x=spot!s} and {y=spot!sx}.", HIDE_FOUND},
        {2, "First {h} looked {x=spot!s}, but {f} was not there.", HIDE_FOUND}),
    BEAT(HIDE_FOUND,
        {3, "At last, {h} found {f.him} {s}.", HIDE_TURN},
        {2, "Then {h} heard {f} laugh and found {f.him} {s}.", HIDE_TURN},
        {2, "\"You are {s}!\" said {h}.", HIDE_TURN}),
    BEAT(HIDE_TURN,
        {2, "Then {f} counted, and {h} hid {s=spot!s}.", HIDE_END},
        {2, "After that, {h} hid {s=spot!s}, and {f} looked for {h.him}.", HIDE_END},
        {2, "", END_PAIR}),
    BEAT(HIDE_END,
        {2, "{f} found {h.him} {s} very soon.", END_PAIR},
        {2, "But {f} did not look {s}, so {h} won.", END_PAIR}),

    /* A present: what is in the box? */
    BEAT(GIFT,
        {3, "It was the birthday of {f}, so {h} got {thing} for {f.him}.", GIFT_WRAP},
        {2, "{f} wanted {thing}, and {h} knew it.", GIFT_WRAP},
        {2, "\"I want to give you {thing},\" said {h}.", GIFT_WRAP}),
    BEAT(GIFT_WRAP,
        {3, "{h} put the {t} in a {d=colour} {k=container}.", GIFT_OPEN},
        {2, "{h} came with a {size} {d=colour} {k=container}.", GIFT_OPEN}),
    BEAT(GIFT_OPEN,
        {3, "{f} opened the {d} {k} and saw the {c} {t}.", GIFT_THANK},
        {2, "\"What is in the {d} {k}?\" asked {f}.", GIFT_THANK},
        {2, "\"Look, the {d} {k} is for you,\" said {h}.", GIFT_THANK}),
    BEAT(GIFT_THANK,
        {3, "\"Thank you for the {t}, {h}!\" said {f}.", GIFT_END},
        {2, "{f} was {happy} and gave {h} a {hug}.", GIFT_END},
        {2, "{f} loved the {t} and showed {t.it} to {f.his} {r=relative}.", GIFT_END}),
    BEAT(GIFT_END,
        {2, "From that day on, {f} {t.played} the {c} {t} every day.", END},
        {2, "{f} kept the {c} {t} in the {d} {k}.", END},
        {3, "", END_PAIR}),

    BEAT(END_SOLO,
        {3, "{h} was {happy}.", END},
        {2, "That night, {h} slept {well}.", END},
        {2, "It was a {good} {time} for {h}.", END}),
    BEAT(END_PAIR,
        {3, "{h} and {f} were {happy}.", END},
        {2, "Then {h} and {f} went home together.", END},
        {2, "It was a {good} {time} for {h} and {f}.", END},
        {2, "From that day on, {h} and {f} were {friends}.", END}),
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
