//! Letting the power go out after every effect.

use super::World;
use crate::core::durable::crash;

/// Does `work` on a copy of `world` again and again, with the power going out after 0, 1, 2... effects, until it gets through; each time
/// looks at what is left, and at what `follow` makes of it: what the operator or the timer does next. Returns how many effects there are.
pub(crate) fn every_prefix<R>(
    what: &str,
    world: &World,
    work: impl Fn(&World) -> R,
    follow: impl Fn(&World, R, &str),
) -> u32 {
    for effects in 0..400 {
        let context = format!("{what}, power out after {effects} effects");
        let world = world.copy();
        let (result, used_up) = crash::after(effects, || work(&world));
        world.check(&context);
        world.tick();
        follow(&world, result, &context);
        world.check(&context);
        if !used_up {
            return effects;
        }
    }
    panic!("{what} does not end");
}
