"""The word lists of the stories. A template names a list as ``<list>``; a story uses no entry of a list twice.

Every entry fits every sentence that names its list: nouns are singular and countable unless the list says otherwise,
verbs are in the past, adverbs can follow "said X".
"""

from __future__ import annotations


def _list(text: str) -> tuple[str, ...]:
    """Entries are divided by commas; an entry may run on in the next line."""
    return tuple(" ".join(entry.split()) for entry in text.split(",") if entry.strip())


GIRLS = _list(
    """Ada, Alma, Amy, Anna, Bea, Bella, Beth, Bridget, Carla, Celia, Clara, Cora, Daisy, Dora, Edith, Edna, Ella, Elsie,
    Emma, Erin, Esme, Eva, Fay, Flora, Freya, Gemma, Greta, Hannah, Hazel, Heidi, Helen, Hilda, Ida, Ines, Iris, Isla,
    Jane, Jenny, Joan, Josie, Judith, Kate, Kitty, Lara, Laura, Lena, Lily, Lotte, Lucy, Mabel, Maggie, Maisie, Marta,
    Mary, Maya, Mila, Mina, Mira, Molly, Nadia, Nancy, Nell, Nina, Nora, Olive, Pam, Petra, Polly, Rosa, Ruby, Ruth, Sally,
    Sara, Selma, Sofia, Stella, Tess, Tilda, Tina, Una, Vera, Wanda, Wilma, Winnie, Zoe"""
)
BOYS = _list(
    """Adam, Alan, Albert, Alec, Arlo, Arthur, Ben, Bert, Bruno, Carl, Colin, Dan, David, Dylan, Eddie, Edwin, Eli, Eric,
    Ernest, Ethan, Felix, Finn, Francis, Frank, Fred, George, Gus, Hal, Harry, Henry, Hugo, Ivan, Jack, Jacob, James, Jasper,
    Jem, Joe, Jonas, Karl, Kit, Leo, Lewis, Liam, Louis, Luke, Mark, Martin, Matt, Max, Milo, Nat, Ned, Nick, Noah, Oliver,
    Omar, Oscar, Otis, Otto, Owen, Paul, Percy, Peter, Philip, Ralph, Ravi, Robin, Rory, Rowan, Sam, Saul, Seth, Silas,
    Simon, Theo, Tim, Toby, Tom, Victor, Walter, Will"""
)
SURNAMES = _list(
    """Barlow, Bell, Birch, Bloom, Bramley, Brook, Carter, Chandler, Clay, Cobb, Crane, Dale, Drake, Elm, Fairley, Fenn,
    Field, Finch, Fletcher, Ford, Frost, Gale, Gill, Green, Hale, Harper, Hart, Hill, Holt, Hood, Hopkins, Hurst, Ivory,
    Kettle, Knott, Lamb, Lark, Marsh, Mason, Mead, Miller, Moss, Nettle, Oakes, Page, Parker, Peck, Penny, Pepper, Pike,
    Plum, Potts, Quick, Quill, Reed, Rivers, Rook, Sharp, Shepherd, Skinner, Snow, Sparrow, Stone, Swift, Tanner, Thorne,
    Tucker, Turner, Vane, Wade, Weaver, Webb, Wells, Winter, Wren, Yates"""
)
VILLAGES = _list(
    """Alder Bridge, Apple Hill, Ashcombe, Badger's End, Barley Green, Beech Hollow, Bramble Lane, Brookside, Candle Bay,
    Cherry Row, Clover Hill, Crab Harbour, Crow's Nest, Dandelion Street, Duck Lane, Elder Green, Farthing, Fernley,
    Fiddler's Rest, Foxholt, Goose Common, Gull Point, Hay Lane, Hazel Bank, Honeywell, Juniper Street, Kettleby, Larkhill,
    Little Marlow, Long Meadow, Maple Cross, Millbrook, Mossford, Nettlecombe, Nine Oaks, Oldfield, Otter Creek, Owlerton,
    Pebble Cove, Pepper Lane, Plum Tree Yard, Quarry End, Rushmere, Sandy Lane, Sheepfold, Skipper's Quay, Snowdrop Hill,
    Stony Stream, Swallow Farm, Thistledown, Three Wells, Upper Combe, Walnut Close, Wexley, Whistle Down, Willow Bend"""
)
JOBS = _list(
    """baker, miller, farmer, teacher, gardener, potter, weaver, carpenter, fisher, postmaster, shopkeeper, clockmaker,
    shoemaker, tailor, blacksmith, beekeeper, librarian, painter, doctor, cook, ferry keeper, shepherd, tinker, basket maker,
    candle maker, cheese maker, bell ringer, lamp lighter, boat builder, glass blower, innkeeper, barber, bookbinder, mason,
    hatter, violin maker, saddler, station master, lighthouse keeper, toy maker"""
)

LISTS: dict[str, tuple[str, ...]] = {
    "colour": _list(
        """red, blue, green, yellow, orange, purple, pink, brown, white, black, grey, golden, silver, scarlet, crimson, violet,
        turquoise, cream, amber, emerald, striped, spotted, pale blue, dark green, bright red, sky blue, bottle green, rusty"""
    ),
    "animal": _list(
        """mare, foal, ferret, salamander, lizard, bat, pheasant, turkey, peacock, guinea pig, grasshopper, dragonfly, moth, tomcat, terrier,
        sheepdog, ram, billy goat, gander, duckling, water rat, dog, cat, goat, sheep, pony, donkey, cow, calf, lamb, kitten, puppy, rabbit, hare, fox, badger, hedgehog, squirrel,
        mouse, mole, otter, weasel, deer, frog, toad, newt, duck, goose, hen, rooster, pig, piglet, stoat, beetle, spider, snail"""
    ),
    "bird": _list(
        """bullfinch, goldfinch, blue tit, nuthatch, wagtail, stork, curlew, plover, partridge, grouse, hawk, falcon, kestrel, buzzard,
        puffin, cormorant, chaffinch, warbler, yellowhammer, siskin, snipe, lapwing, sparrow, robin, wren, thrush, blackbird, starling, swallow, magpie, crow, rook, jackdaw, owl, gull, heron, swan,
        pigeon, dove, finch, lark, cuckoo, kingfisher, woodpecker, raven, jay, linnet, tern, nightingale, skylark"""
    ),
    "tree": _list(
        """aspen, cedar, hornbeam, spruce, quince tree, medlar, mulberry tree, acacia, plane tree, juniper, hawthorn, blackthorn, holly,
        weeping willow, copper beech, mountain ash, oak, elm, ash, beech, birch, willow, maple, pine, fir, larch, chestnut, walnut tree, apple tree, pear tree, plum tree,
        cherry tree, hazel, alder, poplar, lime tree, rowan, yew, sycamore, elder"""
    ),
    "flowers": _list(
        """carnations, chrysanthemums, columbines, cowslips, cyclamens, delphiniums, freesias, gentians, harebells, hyacinths, jasmine,
        larkspurs, lupins, magnolias, orchids, petunias, phlox, snapdragons, stocks, zinnias, anemones, begonias, roses, tulips, daisies, poppies, bluebells, violets, primroses, daffodils, snowdrops, marigolds, pansies, lilies,
        cornflowers, foxgloves, buttercups, sunflowers, lavender, geraniums, crocuses, asters, hollyhocks, honeysuckle,
        forget-me-nots, peonies, irises, sweet peas, wallflowers, dahlias"""
    ),
    "fruit": _list(
        """apple, pear, plum, peach, cherry, apricot, orange, lemon, fig, strawberry, raspberry, blackberry, gooseberry, quince,
        melon, grape, banana, redcurrant"""
    ),
    "berries": _list(
        "strawberries, raspberries, blackberries, gooseberries, bilberries, redcurrants, blackcurrants, cherries, elderberries, mulberries"
    ),
    "vegetables": _list(
        """carrots, onions, turnips, potatoes, leeks, beans, peas, cabbages, parsnips, beetroots, radishes, tomatoes, cucumbers,
        marrows, pumpkins, lettuces, spinach, celery, sprouts"""
    ),
    "snack": _list(
        """a slice of melon, a bowl of cherries, a cup of apple tea, a piece of shortbread, a treacle tart, a ham roll, a dish of custard,
        a bowl of pea soup, a plate of dumplings, a baked potato with butter, a wedge of walnut bread, a honeycomb, a lemon cake,
        a mug of cider, a poppy seed roll, a plate of fried fish, a bowl of barley broth, a spoonful of syrup, a gingerbread man,
        a rhubarb crumble, a pot of blackberry jam, a bag of toffees, a cheese straw, a cold chicken leg, a mushroom omelette, a slice of bread and butter, a cheese sandwich, a hot potato, a bowl of soup, a plate of pancakes, a piece of plum
        cake, a buttered scone, a handful of nuts, a ginger biscuit, a cup of cocoa, a mug of milk, a boiled egg, a ripe pear,
        a slice of apple pie, a honey cake, a bun with raisins, a bowl of porridge, a piece of toast with jam, a sausage roll,
        a dish of stewed plums, a jam tart, a bowl of rice pudding, a baked apple, a glass of cold lemonade, a warm muffin,
        a mug of hot chicken broth, a wedge of cheese, a currant loaf, a pot of mint tea, a bowl of onion soup"""
    ),
    "smell": _list(
        """thyme, rosemary, tar, paint, sawdust, chalk, hot iron, vanilla, lemon peel, tea, straw, fish, vinegar, smoke, moss, violets, ink,
        mint, nutmeg, caramel, roast chestnuts, turpentine, beeswax, cold stone, toffee, garlic, parsley, fresh bread, wet grass, wood smoke, hay, lavender, apples, rain, warm milk, pine needles, roses, soap, salt, peppermint,
        honey, old books, damp wool, cinnamon, candle wax, mown grass, coffee, leather, onions, polish, ginger, mud, seaweed"""
    ),
    "sound": _list(
        """an axe rang in the wood, somebody was sharpening a scythe, a hinge complained, a piano was playing scales, a donkey brayed,
        stones clattered down the quarry, a pulley squealed, an owl hooted, a tap dripped, a flag cracked in the wind, somebody sneezed,
        a cuckoo clock called, a mill wheel splashed, a barrel rolled down a ramp, a kettle lid rattled, a shutter slammed, a cart rattled over the stones, a door banged, a wheelbarrow squeaked, a rooster crowed, a church bell rang, somebody
        was whistling, hens clucked in a yard, a saw sang in a workshop, water dripped from a gutter, a kettle began to sing,
        a dog barked at nothing, wind chimes tinkled, a train hooted, pigeons cooed on a roof, a hammer tapped, somebody laughed,
        a gate creaked, a fiddle was playing, leaves rustled, a bucket clanked by the well, somebody beat a carpet, a baby cried,
        a broom swished on a step, a coin rang on a stone, sheep bleated on the hill, a window squeaked, geese honked overhead,
        a chain rattled, a clock struck, a horse snorted"""
    ),
    "kind_adj": _list(
        """gentle-voiced, brave, loyal, modest, busy, humble, bright, jolly, steady, wise, kind, gentle, friendly, helpful, cheerful, good, thoughtful, generous, patient, honest, warm-hearted, merry, polite,
        good-natured, sensible, clever, quick, lively"""
    ),
    "small": _list("small, little, tiny, narrow, low, tidy, neat, snug, cosy, modest, short"),
    "big": _list("big, large, great, huge, enormous, tall, wide, mighty, broad, giant"),
    "old": _list("old, ancient, worn, crooked, dusty, faded, battered, rusty, shabby, creaky, mossy, patched"),
    "pretty": _list(
        "pretty, lovely, beautiful, fine, handsome, splendid, charming, delicate, graceful, bright, shining, neat, elegant, dainty"
    ),
    "good": _list(
        "good, wonderful, excellent, splendid, clever, brilliant, fine, lovely, marvellous, sensible, capital, perfect"
    ),
    "strange": _list(
        """wondrous, remarkable, unheard-of, unlikely, strange, odd, queer, curious, peculiar, funny, unusual, mysterious, puzzling, unexpected"""
    ),
    "happy": _list(
        """cheerful as a lark, satisfied, overjoyed, light-hearted, happy, glad, pleased, delighted, cheerful, proud, content, merry, joyful, thrilled"""
    ),
    "sad": _list(
        """heavy-hearted, woeful, dejected, tearful, sad, unhappy, gloomy, miserable, sorry, glum, downcast, disappointed, upset, wretched"""
    ),
    "afraid": _list("afraid, frightened, scared, nervous, uneasy, worried, anxious, alarmed"),
    "cross": _list("cross, angry, annoyed, furious, grumpy, vexed, indignant"),
    "tired": _list("tired, weary, sleepy, worn out, exhausted, drowsy, footsore"),
    "surprised": _list("surprised, astonished, amazed, startled, puzzled, speechless, bewildered"),
    "walked": _list(
        """walked, strolled, hurried, wandered, trotted, marched, skipped, ran, tramped, ambled, stepped, set off, rushed, raced"""
    ),
    "went": _list("went, walked, hurried, ran, trotted, marched, climbed, strolled, crept, slipped"),
    "looked": _list("looked, gazed, stared, peered, glanced, peeped, squinted"),
    "quickly": _list(
        "quickly, at once, right away, without a word, in a hurry, as fast as possible, straight away, in no time, promptly, eagerly"
    ),
    "slowly": _list(
        "slowly, carefully, gently, quietly, little by little, step by step, patiently, steadily, cautiously, softly"
    ),
    "softly": _list(
        """softly, quietly, gently, kindly, calmly, thoughtfully, dreamily, drily, earnestly, politely, proudly, seriously, warmly, wisely, slyly,
        after a while, with a nod, with a wink, with a shrug, at last, between two bites, from behind a <furniture>, over {who.his} shoulder,
        through {who.his} nose, in a friendly way, under {who.his} breath, in one breath, with raised eyebrows, in a low voice, slowly, shyly, with a small smile"""
    ),
    "loudly": _list(
        "loudly, at the top of {who.his} voice, cheerfully, in great excitement, happily, eagerly, merrily, with a laugh"
    ),
    "crossly": _list(
        """crossly, angrily, furiously, hotly, sharply, bitterly, through clenched teeth, at the top of {who.his} voice,
        with flashing eyes, loudly, rudely, in a rage"""
    ),
    "alarmed": _list(
        """in alarm, breathlessly, in dismay, with wide eyes, loudly, in a shaking voice, at the top of {who.his} voice, anxiously,
        in a fright"""
    ),
    "sadly": _list("sadly, with a sigh, in a small voice, unhappily, miserably, glumly, close to tears, gloomily"),
    "soon": _list("soon, before long, after a while, a little later, in a few minutes, presently, at last, by and by"),
    "then": _list("then, next, after that, a moment later, just then, all at once, suddenly"),
    "number": _list("two, three, four, five, six, seven, eight, nine, ten, eleven, twelve"),
    "many": _list("three, four, five, six, seven, eight, nine, ten, a dozen, twenty, half a dozen"),
    "day": _list("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "month": _list("January, February, March, April, May, June, July, August, September, October, November, December"),
    "metal": _list("iron, copper, brass, tin, silver, bronze, steel, pewter"),
    "wood": _list("oak, pine, cherry wood, walnut, willow, beech, birch, cedar, ash, chestnut"),
    "cloth": _list("wool, linen, cotton, silk, velvet, felt, canvas, tweed, flannel, corduroy"),
    "room": _list("kitchen, attic, cellar, hall, bedroom, parlour, pantry, workshop, washroom, study, nursery"),
    "furniture": _list(
        """footstool, washstand, sideboard, cradle, coat stand, bookshelf, writing desk, kitchen chair, linen chest, trunk, settle, couch, table, chair, bench, stool, cupboard, bed, shelf, chest, desk, sofa, wardrobe, dresser, bookcase, rocking chair, piano"""
    ),
    "tool": _list(
        """mallet, pitchfork, crowbar, plane, sickle, watering can, vice, oil can, spirit level, soldering iron, whetstone, drill, ladle, hammer, saw, spade, rake, axe, chisel, broom, shovel, pair of pliers, screwdriver, file, trowel, hoe, wrench, paintbrush"""
    ),
    "toy": _list(
        """doll, wooden horse, spinning top, toy drum, tin soldier, rag rabbit, toy train, yo-yo, hoop, puppet, toy boat, jigsaw,
        paper windmill, skipping rope, whistle, teddy bear, box of bricks, marble, rattle, toy castle"""
    ),
    "clothes": _list(
        """dressing gown, petticoat, muffler, poncho, nightshirt, kilt, blouse, overcoat, sun hat, bathrobe, sweater, anorak, smock, coat, scarf, cap, apron, jacket, cardigan, shawl, raincoat, waistcoat, bonnet, tunic, jersey, cloak, straw hat, pinafore"""
    ),
    "worn": _list(
        """a leather apron, a fur cap, a knitted waistcoat, patched trousers, a belt made of rope, a sailor's jersey, a lace collar,
        green gloves, a tall hat, a shirt with pearl buttons, a bright kerchief, felt slippers, wooden beads, a cloak with a hood,
        a pair of braces, a monocle, red socks, a coat with brass buttons, a daisy chain, a paper crown, a nightcap, riding boots, a woollen scarf, muddy boots, a straw hat, a long green coat, a patched jacket, red mittens, a blue apron,
        a knitted cap, yellow boots, a leather belt, striped stockings, a velvet ribbon, round glasses, a raincoat two sizes too
        big, wooden clogs, a brown waistcoat, a cap with a feather in it, odd socks, a checked shirt, a spotted neckerchief"""
    ),
    "game": _list(
        "hide and seek, marbles, leapfrog, tag, hopscotch, cards, dominoes, skittles, chess, ball, snap, blind man's buff"
    ),
    "hobby": _list(
        """painting signs, skating, sailing toy boats, polishing spoons, reading the almanac, drawing castles, mending nets, weaving baskets,
        catching newts, keeping a diary, practising the trumpet, learning poems by heart, looking for mushrooms, counting carts,
        cutting silhouettes, blowing bubbles, collecting stamps, walking on stilts, ironing ribbons, peeling apples in one go,
        dancing, feeding ducks, taking clocks apart, climbing walls, plaiting straw, playing the accordion, watching trains, collecting shells, drawing birds, climbing trees, reading about pirates, whistling tunes, building dams, counting stars,
        baking biscuits, carving sticks, pressing flowers, telling riddles, fishing, knitting, watching ants, painting stones,
        playing the flute, making kites, singing, skimming stones, learning knots, growing beans, mending toys, writing poems,
        spotting trains, catching crabs, juggling, riding bicycles, inventing machines, drawing maps, looking after hens"""
    ),
    "treasure": _list(
        """a thimble with a hole in it, a glass eye, a bent spoon, a domino, a chess king, a watch without hands, a bird's egg made of stone,
        a ticket from long ago, a piece of sealing wax, a tiny padlock, a shark's tooth, a string of corks, a broken clay pipe,
        a wax seal, a foreign stamp, a pewter button, a lizard's skin, a burning glass, a goose quill, a horseshoe nail,
        a pink pebble, a walnut with a face on it, a fish hook, a bead of jet, a sprig of heather, a stub of chalk, a silver thimble, a lucky button, a shell from the south, a smooth white stone, a brass key, a feather, a blue marble,
        an old coin, a piece of green glass, a fossil, a tiny bell, a pine cone, a glass bead, a pocket mirror, a compass,
        a lump of amber, a wooden whistle, a chestnut, a copper ring, a snail shell, a folded map, a magnet, a peach stone"""
    ),
    "inside": _list(
        """by the fire, in the kitchen, at the window, on the stairs, beside the stove, under the table, in the big armchair,
        at the long table, on the rug, by the lamp, in the doorway, on a three-legged stool"""
    ),
    "outside": _list(
        """on the wall, by the gate, under the apple tree, on the steps, in the long grass, beside the well, on a fallen log,
        at the edge of the field, by the hedge, on the old bench, in front of the shed, behind the barn, near the stream, on the doorstep"""
    ),
    "look_of_place": _list(
        """bees flew in and out of a straw hive, a ladder leaned against the wall, a stone frog spat water, fishing rods stood in a
        row, a tin rooster turned in the wind, milk churns waited at the gate, painted flower pots lined the path, vines hung over the
        door, a rope ladder led up to a tree house, an anchor lay in the grass, a blue bench invited everyone to sit, cartwheels leaned
        against the shed, a lamp burned in the window, a row of boots dried in the sun, a kennel stood empty, ivy grew up the walls, the shutters were painted blue, smoke curled from the chimney, a cat slept on the sill,
        washing flapped on the line, beans climbed up the fence, moss covered the steps, two stone lions guarded the gate,
        a weathercock turned on the roof, pots of herbs stood by the door, the windows shone, hens scratched in the yard,
        a lantern hung over the door, the paint was peeling, swallows nested under the roof, a barrel caught the rain,
        old nets hung on the rail, sunflowers leaned over the wall, the gate hung on one hinge, a swing hung from a branch"""
    ),
}
