use std::collections::BTreeSet;

use super::*;

fn id(n: u64) -> BuildId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    BuildId::from_random(bytes)
}

fn limits(running: usize, queued: usize) -> TurnLimits {
    TurnLimits {
        running,
        queued,
        each: Share {
            weight: 1,
            running,
            queued,
        },
        tenants: BTreeMap::new(),
    }
}

/// Numbers that look like chance and are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A day at a server: builds come, run for as long as they are said to, and end.
struct Day {
    turns: Turns,
    now_ms: u64,
    /// When each running build ends.
    ends: BTreeSet<(u64, u64)>,
    /// Of each build: whose, when it came, how long it runs.
    builds: Vec<(usize, u64, u64)>,
    waited_ms: Vec<Vec<u64>>,
    ids: HashMap<BuildId, u64>,
}

impl Day {
    fn new(limits: TurnLimits, n_tenants: usize) -> Self {
        Self {
            turns: Turns::new(limits),
            now_ms: 1_000_000,
            ends: BTreeSet::new(),
            builds: Vec::new(),
            waited_ms: vec![Vec::new(); n_tenants],
            ids: HashMap::new(),
        }
    }

    fn come(&mut self, tenant: usize, runs_ms: u64) {
        let n = self.builds.len() as u64;
        self.builds.push((tenant, self.now_ms, runs_ms));
        self.ids.insert(id(n), n);
        self.turns.wait(&format!("t{tenant}"), &id(n), self.now_ms);
        self.start();
    }

    fn start(&mut self) {
        while let Some(next) = self.turns.next(self.now_ms) {
            let n = self.ids[&next];
            let (tenant, came_ms, runs_ms) = self.builds[usize::try_from(n).unwrap()];
            self.waited_ms[tenant].push(self.now_ms - came_ms);
            assert!(self.ends.insert((self.now_ms + runs_ms, n)));
        }
        assert!(self.ends.len() <= self.turns.limits.running);
    }

    /// Goes on to the next end; false when nothing runs.
    fn next_end(&mut self) -> bool {
        let Some((at_ms, n)) = self.ends.pop_first() else {
            return false;
        };
        self.now_ms = at_ms;
        self.turns.leave(&id(n), at_ms);
        self.start();
        true
    }

    fn mean_waits_ms(&self) -> Vec<u64> {
        let mean = |waits: &Vec<u64>| waits.iter().sum::<u64>() / waits.len() as u64;
        self.waited_ms.iter().map(mean).collect()
    }
}

#[test]
fn equal_tenants_wait_equally_long_f1() {
    // 1000 builds of four tenants on 32 places, in bursts of one tenant after the other: the worst order there is.
    let mut worst = (0, 1);
    for seed in 1..=20 {
        let mut chance = Chance(seed);
        let mut day = Day::new(limits(32, 1000), 4);
        for tenant in 0..4 {
            for _ in 0..250 {
                day.come(tenant, 5_000 + chance.below(60_000));
            }
        }
        while day.next_end() {}
        let waits = day.mean_waits_ms();
        let (most, least) = (waits.iter().max().unwrap(), waits.iter().min().unwrap());
        assert_eq!(day.waited_ms.iter().map(Vec::len).sum::<usize>(), 1000);
        assert!(*most <= 2 * least, "seed {seed}: {waits:?}");
        if most * worst.1 > worst.0 * least {
            worst = (*most, *least);
        }
    }
    let (most, least) = worst;
    println!("F1: mean waits of equal tenants, worst of 20 seeds: {most} ms and {least} ms");
}

#[test]
fn who_sends_a_hundred_thousand_builds_delays_nobody_else() {
    let few = |with_flood: bool| {
        let mut limits = limits(4, 100_000);
        limits.each.queued = 100;
        let mut day = Day::new(limits, 2);
        let mut n_refused = 0;
        for round in 0..200 {
            if with_flood {
                for _ in 0..500 {
                    match day.turns.admit("t1") {
                        Ok(()) => day.come(1, 20_000),
                        Err(full) => {
                            assert_eq!(full, Full::Tenant(100));
                            n_refused += 1;
                        }
                    }
                }
            }
            if round % 2 == 0 {
                assert_eq!(day.turns.admit("t0"), Ok(()));
                day.come(0, 20_000);
            }
            let until_ms = day.now_ms + 10_000;
            while day
                .ends
                .first()
                .is_some_and(|(at_ms, _)| *at_ms <= until_ms)
            {
                day.next_end();
            }
            day.now_ms = until_ms;
        }
        assert_eq!(n_refused > 90_000, with_flood);
        *day.waited_ms[0].iter().max().unwrap()
    };
    assert_eq!(few(false), 0);
    // It waits for a place that is taken to become free, and for nothing else.
    assert!(few(true) <= 20_000, "{}", few(true));
}

#[test]
fn weights_divide_the_places_and_nobody_starves() {
    let mut limits = limits(1, 1000);
    for (name, weight) in [("t0", 3), ("t1", 1)] {
        let share = Share {
            weight,
            ..limits.each
        };
        limits.tenants.insert(name.to_owned(), share);
    }
    let mut day = Day::new(limits, 2);
    for _ in 0..100 {
        day.come(0, 60_000);
        day.come(1, 60_000);
    }
    for _ in 0..99 {
        day.next_end();
    }
    let (heavy, light) = (day.waited_ms[0].len(), day.waited_ms[1].len());
    assert_eq!(heavy + light, 100);
    assert!((73..=77).contains(&heavy), "{heavy} and {light}");
}

#[test]
fn long_builds_of_one_take_nothing_from_short_ones_of_another() {
    let mut day = Day::new(limits(4, 1000), 2);
    for _ in 0..50 {
        day.come(0, 3_600_000);
    }
    for _ in 0..500 {
        day.come(1, 60_000);
    }
    // Four hours of the one have begun already; from their end on, both have used the same.
    for _ in 0..4 {
        day.next_end();
    }
    let began_ms = day.now_ms;
    while day.now_ms < began_ms + 3_600_000 * 4 {
        day.next_end();
    }
    let used = |tenant: usize, runs_ms: u64| day.waited_ms[tenant].len() as u64 * runs_ms;
    let (long, short) = (used(0, 3_600_000), used(1, 60_000));
    assert!(short * 3 >= long, "{long} ms and {short} ms");
}

#[test]
fn limits_hold_in_all_and_of_each_tenant_and_are_told_apart() {
    let mut limits = limits(3, 4);
    let share = Share {
        weight: 1,
        running: 1,
        queued: 2,
    };
    limits.tenants.insert("small".to_owned(), share);
    let mut turns = Turns::new(limits);
    let mut n = 0;
    let mut come = |turns: &mut Turns, tenant: &str| {
        turns.admit(tenant)?;
        n += 1;
        turns.wait(tenant, &id(n), 0);
        Ok(turns.next(0))
    };
    assert_eq!(come(&mut turns, "small"), Ok(Some(id(1))));
    assert_eq!(come(&mut turns, "small"), Ok(None));
    assert_eq!(come(&mut turns, "small"), Ok(None));
    assert_eq!(come(&mut turns, "small"), Err(Full::Tenant(2)));
    assert_eq!(come(&mut turns, "big"), Ok(Some(id(4))));
    assert_eq!(come(&mut turns, "big"), Ok(Some(id(5))));
    assert_eq!(come(&mut turns, "big"), Ok(None));
    assert_eq!(come(&mut turns, "big"), Ok(None));
    assert_eq!(come(&mut turns, "big"), Err(Full::Server(4)));
    // A place of the big one is not for the small one, which has its one.
    turns.leave(&id(4), 0);
    assert_eq!(turns.next(0), Some(id(6)));
    turns.leave(&id(1), 0);
    assert_eq!(turns.next(0), Some(id(2)));
    assert_eq!(turns.next(0), None);
}

#[test]
fn the_line_is_the_order_in_which_turns_come() {
    let mut day = Day::new(limits(1, 100), 3);
    for (tenant, n) in [(0, 6), (1, 3), (2, 1)] {
        for _ in 0..n {
            day.come(tenant, 30_000);
        }
    }
    let line = day.turns.line(day.now_ms);
    assert_eq!(line.len(), day.turns.n_waiting());
    let mut came = Vec::new();
    while day.turns.n_waiting() > 0 {
        let before = day.ends.first().unwrap().1;
        day.next_end();
        assert_ne!(day.ends.first().unwrap().1, before);
        came.push(id(day.ends.first().unwrap().1));
    }
    assert_eq!(line, came);
}

#[test]
fn whatever_comes_and_goes_every_build_has_one_turn_and_no_place_is_left_empty() {
    for seed in 1..=300 {
        let mut chance = Chance(seed);
        let running = 1 + usize::try_from(chance.below(4)).unwrap();
        let mut limits = limits(running, 20);
        limits.each.running = 1 + usize::try_from(chance.below(4)).unwrap();
        let share = Share {
            weight: 1 + u32::try_from(chance.below(5)).unwrap(),
            ..limits.each
        };
        limits.tenants.insert("t1".to_owned(), share);
        let mut turns = Turns::new(limits.clone());
        let (mut now_ms, mut n) = (0, 0);
        let (mut waits, mut runs) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..400 {
            now_ms += chance.below(40_000);
            match chance.below(3) {
                0 => {
                    let tenant = format!("t{}", chance.below(3));
                    if turns.admit(&tenant).is_ok() {
                        n += 1;
                        turns.wait(&tenant, &id(n), now_ms);
                        waits.insert(id(n), tenant);
                    }
                }
                1 => {
                    // Somebody who runs ends, or somebody who waits is withdrawn.
                    let all: Vec<BuildId> = waits.keys().chain(runs.keys()).cloned().collect();
                    if !all.is_empty() {
                        let one = &all[usize::try_from(chance.below(all.len() as u64)).unwrap()];
                        turns.leave(one, now_ms);
                        waits.remove(one);
                        runs.remove(one);
                    }
                }
                // Somebody who is not known leaves.
                _ => turns.leave(&id(1 << 40), now_ms),
            }
            while let Some(next) = turns.next(now_ms) {
                let tenant = waits.remove(&next).expect("it waited");
                assert!(runs.insert(next, tenant).is_none());
            }
            let of = |runs: &BTreeMap<BuildId, String>, tenant: &str| {
                runs.values().filter(|of| *of == tenant).count()
            };
            assert!(runs.len() <= limits.running);
            assert_eq!(turns.n_waiting(), waits.len());
            for tenant in ["t0", "t1", "t2"] {
                let n_running = of(&runs, tenant);
                assert!(n_running <= limits.each.running);
                let is_free = runs.len() < limits.running && n_running < limits.each.running;
                assert!(!is_free || of(&waits, tenant) == 0, "seed {seed}");
            }
            let line: BTreeSet<BuildId> = turns.line(now_ms).into_iter().collect();
            assert!(line.iter().eq(waits.keys()), "seed {seed}");
        }
    }
}
