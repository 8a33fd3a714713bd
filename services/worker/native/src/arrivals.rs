//! Bodies that are in memory here before Python has looked at their call: so many in all, and of one caller.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::locked;

const MOST: usize = 128;
/// As many as a worker takes calls: a caller within his limits never waits, and one who sends no bodies leaves room.
const MOST_OF_ONE: usize = 48;

#[derive(Default)]
pub struct Arrivals {
    of_callers: Mutex<(usize, HashMap<u64, usize>)>,
}

impl Arrivals {
    /// Count one in; none where there are too many: such a call is carried to Python, which counts for itself.
    pub fn enter(self: &Arc<Self>, caller: u64) -> Option<Arrival> {
        let mut counted = locked(&self.of_callers);
        let (all, of_callers) = &mut *counted;
        let mine = of_callers.entry(caller).or_default();
        if *all >= MOST || *mine >= MOST_OF_ONE {
            return None;
        }
        *all += 1;
        *mine += 1;
        Some(Arrival { arrivals: Arc::clone(self), caller })
    }
}

/// One body; dropping it counts it out.
pub struct Arrival {
    arrivals: Arc<Arrivals>,
    caller: u64,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut counted = locked(&self.arrivals.of_callers);
        counted.0 -= 1;
        if let Some(mine) = counted.1.get_mut(&self.caller) {
            *mine -= 1;
            if *mine == 0 {
                counted.1.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_leaves_room_for_others() {
        let arrivals = Arc::new(Arrivals::default());
        let enter = |caller| (0..200).map_while(|_| arrivals.enter(caller)).collect::<Vec<_>>();
        let first = enter(1);
        assert_eq!(first.len(), MOST_OF_ONE);
        let (second, third) = (enter(2), enter(3));
        assert_eq!((second.len(), third.len()), (48, 32));
        drop(first);
        assert_eq!(enter(3).len(), 16);
        drop((second, third));
        let counted = arrivals.of_callers.lock().unwrap();
        assert_eq!((counted.0, counted.1.values().sum::<usize>()), (0, 0));
    }
}
