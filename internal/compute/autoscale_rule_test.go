package compute

import (
	"testing"
	"time"

	"github.com/boughdb/bough/internal/compute/cgroup"
	"github.com/boughdb/bough/internal/postgres"
)

const gibibyte = int64(1) << 30

// looks feeds a load with one look every five seconds and returns the sizes that follow.
type looks struct {
	load   load
	now    time.Time
	usage  cgroup.Usage
	size   float64
	lo, hi float64
}

func newLooks(lo, hi float64) *looks {
	l := &looks{now: time.Unix(1_700_000_000, 0), size: lo, lo: lo, hi: hi}
	l.load.at = l.now
	return l
}

// look is one look after five seconds of cores used, cores kept away by the limit, and memory in bytes.
func (l *looks) look(used, missed float64, memory int64) float64 {
	const every = 5 * time.Second
	l.now = l.now.Add(every)
	l.usage.CPU += time.Duration(used * float64(every))
	l.usage.Throttled += time.Duration(missed * float64(every))
	l.usage.Memory = memory
	l.size = l.load.next(l.now, every/2, l.usage, l.size, l.lo, l.hi)
	return l.size
}

func TestRiseIsImmediate(t *testing.T) {
	for name, c := range map[string]struct {
		used, missed float64
		memory       int64
		want         float64
	}{
		"idle":                              {0, 0, 0, 0.25},
		"at 90 % of its CPU":                {0.225, 0, 0, 0.25},
		"just over":                         {0.23, 0, 0, 0.5},
		"one busy backend, throttled":       {0.25, 0.75, 0, 1.25},
		"more than the upper limit":         {0.25, 11, 0, 4},
		"memory at 75 %":                    {0, 0, gibibyte * 3 / 4, 0.25},
		"memory just over":                  {0, 0, gibibyte*3/4 + 1<<20, 0.5},
		"six gigabytes ask for two units":   {0, 0, 6 * gibibyte, 2},
		"the larger of the two requests":    {0.8, 0, 6 * gibibyte, 2},
		"the larger of the two, other side": {2.5, 0, gibibyte, 3},
	} {
		if got := newLooks(0.25, 4).look(c.used, c.missed, c.memory); got != c.want {
			t.Errorf("%s: size %v; want %v", name, got, c.want)
		}
	}
}

func TestFallIsSlowAndStepwise(t *testing.T) {
	l := newLooks(0.25, 4)
	for range 24 { // two minutes
		l.look(3.5, 0, gibibyte/2)
	}
	if l.size != 4 {
		t.Fatalf("size under load = %v; want 4", l.size)
	}
	last, steps := l.size, 0
	for range 120 { // ten minutes
		now := l.look(0, 0, gibibyte/2)
		if now > last || last-now > max(quantum, last/shrinkPart) {
			t.Fatalf("from %v to %v in one look", last, now)
		}
		if now < last {
			steps++
		}
		if steps == 0 && l.load.average > 3.3 && now < 4 {
			t.Fatal("the first idle look shrank it")
		}
		last = now
	}
	if last != 0.25 || steps < 8 {
		t.Errorf("size after ten idle minutes = %v, in %d steps; want 0.25 in many", last, steps)
	}
}

// A pause of ten seconds within a steady load costs little, and a compute whose memory is full does not shrink under it.
func TestFallHeeds(t *testing.T) {
	l := newLooks(0.25, 4)
	for range 24 {
		l.look(3.5, 0, 0)
	}
	if l.look(0, 0, 0); l.look(0, 0, 0) < 3 {
		t.Errorf("size after a pause of ten seconds = %v", l.size)
	}
	l = newLooks(0.25, 4)
	l.look(0, 0, 6*gibibyte)
	for range 50 {
		l.look(0, 0, 6*gibibyte)
	}
	if l.size != 2 {
		t.Errorf("size with 6 GiB in use = %v; want 2", l.size)
	}
}

// The first look has nothing to compare with, and one that follows another at once would see a spike.
func TestFirstLook(t *testing.T) {
	var l load
	now := time.Now()
	if got := l.next(now, time.Second, cgroup.Usage{CPU: time.Hour}, 0.25, 0.25, 4); got != 0.25 {
		t.Errorf("size after the first look = %v", got)
	}
	if got := l.next(now.Add(10*time.Millisecond), time.Second, cgroup.Usage{CPU: 2 * time.Hour}, 0.25, 0.25, 4); got != 0.25 {
		t.Errorf("size after a look that came too soon = %v", got)
	}
}

func TestBoundsOfTheMachine(t *testing.T) {
	m := &Manager{opts: Options{MachineCPUs: 2, MachineMem: 24 * gibibyte, Groups: &cgroup.Tree{}}}
	for _, c := range []struct {
		size   postgres.SizeSpec
		lo, hi float64
		capped bool
	}{
		{postgres.SizeSpec{MinCU: 0.25, MaxCU: 0.25}, 0.25, 0.25, false},
		{postgres.SizeSpec{MinCU: 0.25, MaxCU: 2}, 0.25, 2, false},
		{postgres.SizeSpec{MinCU: 1, MaxCU: 8}, 1, 2, true},
		{postgres.SizeSpec{MinCU: 56, MaxCU: 56}, 2, 2, true},
		{postgres.SizeSpec{}, 0.25, 0.25, false},
	} {
		lo, hi := m.bounds(c.size)
		if note := m.note(c.size, true); lo != c.lo || hi != c.hi || (note != "") != c.capped {
			t.Errorf("%+v: %v to %v, note %q; want %v to %v, capped %v", c.size, lo, hi, note, c.lo, c.hi, c.capped)
		}
	}
	if got := m.memoryOf(8); got != 24*gibibyte {
		t.Errorf("memory of 8 CU = %d", got)
	}
	m.opts.MachineMem = 4 * gibibyte
	if m.note(postgres.SizeSpec{MinCU: 2, MaxCU: 2}, true) == "" {
		t.Error("a size with more memory than the machine has is not said to be capped")
	}
}
