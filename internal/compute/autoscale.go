package compute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"time"

	"github.com/boughdb/bough/internal/compute/cgroup"
	"github.com/boughdb/bough/internal/postgres"
)

// Autoscaling: one loop looks at every running compute whose limits differ. Its size, in compute units, rises at once to what
// the last look asks for, and falls step by step with the average of the last minute: a rise is felt within two looks, and a
// short pause does not cost what was gained. Only the files of the control group change; the server does not notice, and no
// setting depends on the present size.

const (
	cpuGoal    = 0.9  // the load that a size is enough for, as a share of its CPU
	memoryGoal = 0.75 // and of its memory
	quantum    = 0.25 // sizes are multiples of it, between the limits
	loadWindow = 60   // looks that the average load is taken over: a minute
	shrinkLook = 5    // every how many looks a size may fall by a step
	shrinkPart = 8    // a step down is this part of the size, at least a quantum

	// Somebody waits for a compute that starts or stops: it goes before those that run, whose weight is their size. (The
	// niceness of a replaying process counts within its group only.)
	startWeight = 8
)

// Size is how large a compute is now.
type Size struct {
	CU   float64 // compute units; without enforcement its upper limit
	Note string  // what keeps it from what was asked for; "" when nothing does
}

// bounds are a compute's limits on this machine. A unit is one of its processors: what it has fewer of than the limit asks
// for is the bound.
func (m *Manager) bounds(s postgres.SizeSpec) (lo, hi float64) {
	lo, hi = max(s.MinCU, quantum), max(s.MinCU, s.MaxCU, quantum)
	cpus := float64(m.opts.MachineCPUs)
	return min(lo, cpus), min(hi, cpus)
}

// memoryOf is the memory that belongs to a size, as far as the machine has it.
func (m *Manager) memoryOf(cu float64) int64 {
	n := int64(cu * float64(postgres.UnitMemory))
	if m.opts.MachineMem > 0 {
		n = min(n, m.opts.MachineMem)
	}
	return n
}

// note says what keeps a compute from its limits.
func (m *Manager) note(s postgres.SizeSpec, grouped bool) string {
	switch want := max(s.MinCU, s.MaxCU); {
	case m.opts.Groups == nil:
		return "the size is not enforced: " + cmp.Or(m.opts.Ungrouped, "control groups are off")
	case !grouped:
		return "the size is not enforced: the compute started without a control group; a restart gives it one"
	case want > float64(m.opts.MachineCPUs) || m.memoryOf(want) < int64(want*float64(postgres.UnitMemory)):
		return fmt.Sprintf("the limit of %v CU is more than this machine has (%d CPUs, %.1f GiB): capped at what there is",
			want, m.opts.MachineCPUs, float64(m.opts.MachineMem)/(1<<30))
	}
	return ""
}

// Size returns the size of a running compute.
func (m *Manager) Size(endpointID string) (Size, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.units[endpointID]
	if u == nil || u.phase != running {
		return Size{}, false
	}
	return Size{CU: u.size, Note: m.note(u.limits, u.group != nil)}, true
}

// Sizes returns the sizes of all running computes by endpoint, in compute units.
func (m *Manager) Sizes() map[string]float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	sizes := make(map[string]float64, len(m.units))
	for id, u := range m.units {
		if u.phase == running {
			sizes[id] = u.size
		}
	}
	return sizes
}

// Autoscaled counts the changes of size that load has brought about.
func (m *Manager) Autoscaled() (up, down int64) { return m.grown.Load(), m.shrunk.Load() }

// Resizable tells whether a running compute can go from one pair of limits to another without a restart; see
// postgres.SameSettings.
func (m *Manager) Resizable(from, to postgres.SizeSpec) bool {
	return postgres.SameSettings(from, to)
}

// Resize gives a running compute other limits, for which Resizable holds. Unknown endpoints are ignored: they start with
// what their spec says.
func (m *Manager) Resize(endpointID string, to postgres.SizeSpec) {
	m.mu.Lock()
	u := m.units[endpointID]
	if u == nil || u.phase == stopping {
		m.mu.Unlock()
		return
	}
	u.limits = to
	m.mu.Unlock()
	m.apply(u, 0)
}

// apply gives a compute the size cu, brought between its limits, or with 0 its present one. It does nothing to one that is
// not ready yet or is stopping: those have no limit of CPU.
func (m *Manager) apply(u *unit, cu float64) {
	u.sizing.Lock()
	defer u.sizing.Unlock()
	m.mu.Lock()
	if u.phase == stopping || u.proc == nil {
		m.mu.Unlock()
		return
	}
	limits, group := u.limits, u.group
	lo, hi := m.bounds(limits)
	cu = min(max(cmp.Or(cu, u.size), lo), hi)
	if group == nil {
		cu = hi
	}
	if !u.meter.since.IsZero() {
		u.meter.advance(time.Now(), u.metered())
	}
	u.size = cu
	m.mu.Unlock()
	if group == nil {
		return
	}
	cores := cu
	if cu >= float64(m.opts.MachineCPUs) {
		cores = 0 // all there is
	}
	// The hard limit is that of the largest size: memory that is asked for faster than we look must not end a process.
	hard, soft := m.memoryOf(max(limits.MinCU, limits.MaxCU)), m.memoryOf(cu)
	if soft = max(soft, postgres.FixedMemory(limits, m.opts.MachineMem)); cu == hi || soft >= hard {
		soft = 0
	}
	if err := errors.Join(group.SetCPU(cores, cu), group.SetMemory(hard, soft)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Warn("the size of a compute cannot be set", "endpoint", u.id, "cu", cu, "error", err)
	}
}

// group makes the control group of a compute that is to start; nil when there is none to have. Until the compute is ready its
// CPU is not limited: a quarter of a processor would make a start, and the replay of a new branch, four times as long.
func (m *Manager) group(spec Spec) *cgroup.Group {
	if m.opts.Groups == nil {
		return nil
	}
	g := m.opts.Groups.Group(spec.EndpointID)
	if err := errors.Join(g.Make(startWeight), g.SetMemory(m.memoryOf(max(spec.Size.MinCU, spec.Size.MaxCU)), 0)); err != nil {
		m.log.Error("a compute starts without limits", "endpoint", spec.EndpointID, "error", err)
		return nil
	}
	return g
}

// unlimit lets a compute that is to end do so at full speed.
func (m *Manager) unlimit(u *unit) {
	u.sizing.Lock()
	defer u.sizing.Unlock()
	if u.group != nil {
		if err := u.group.SetCPU(0, startWeight); err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.log.Debug("a stopping compute keeps its limit", "endpoint", u.id, "error", err)
		}
	}
}

// clear ends what is left of a compute and removes its control group.
func (m *Manager) clear(ctx context.Context, id, dataDir, socketDir string) error {
	if err := m.opts.Driver.Clear(ctx, dataDir, socketDir); err != nil {
		return err
	}
	m.ungroup(ctx, id)
	return nil
}

// ungroup removes a compute's control group. One that stays is harmless: the next start takes it over.
func (m *Manager) ungroup(ctx context.Context, id string) {
	if m.opts.Groups == nil {
		return
	}
	if err := m.opts.Groups.Group(id).Remove(ctx); err != nil {
		m.log.Warn("a control group stays", "compute_id", id, "error", err)
	}
}

// Sweep removes the control groups of computes that this Manager does not know. It comes once all that run are attached.
func (m *Manager) Sweep(ctx context.Context) error {
	if m.opts.Groups == nil {
		return nil
	}
	ids, err := m.opts.Groups.IDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		m.mu.Lock()
		_, known := m.units[id]
		m.mu.Unlock()
		if !known {
			m.ungroup(ctx, id)
		}
	}
	return nil
}

// firstSize is the size that a compute begins with: its lower limit, or what an earlier server left an attached one at.
func (m *Manager) firstSize(limits postgres.SizeSpec, group *cgroup.Group, attached bool) float64 {
	lo, hi := m.bounds(limits)
	if group == nil || !attached {
		return lo
	}
	cores, err := group.CPU()
	if err != nil {
		return lo
	}
	if cores == 0 {
		return hi // it falls by itself
	}
	return cores
}

// autoscale looks at the computes until the Manager closes.
func (m *Manager) autoscale() {
	tick := time.NewTicker(m.opts.ScaleEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case now := <-tick.C:
			m.scaleAll(now)
		}
	}
}

// scaleAll looks once at every compute whose size can change.
func (m *Manager) scaleAll(now time.Time) {
	type target struct {
		u      *unit
		size   float64
		lo, hi float64
	}
	m.mu.Lock()
	targets := make([]target, 0, len(m.units))
	for _, u := range m.units {
		if u.phase != running || u.group == nil {
			continue
		}
		if lo, hi := m.bounds(u.limits); lo < hi {
			targets = append(targets, target{u, u.size, lo, hi})
		}
	}
	m.mu.Unlock()
	for _, t := range targets {
		usage, err := t.u.group.Usage()
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) { // else it has just ended
				m.log.Debug("the load of a compute cannot be read", "endpoint", t.u.id, "error", err)
			}
			continue
		}
		next := t.u.load.next(now, m.opts.ScaleEvery/2, usage, t.size, t.lo, t.hi)
		if next == t.size {
			continue
		}
		m.apply(t.u, next)
		if next > t.size {
			m.grown.Add(1)
		} else {
			m.shrunk.Add(1)
		}
		m.log.Info("compute resized", "endpoint", t.u.id, "from_cu", t.size, "to_cu", next,
			"load", math.Round(t.u.load.last*100)/100, "memory_mib", usage.Memory>>20)
	}
}

// load is what autoscaling remembers of one compute; it belongs to the loop.
type load struct {
	at      time.Time // of the last look; zero before the first
	usage   cgroup.Usage
	last    float64 // processors wanted between the last two looks: used, or kept away by the limit
	average float64 // over the last loadWindow looks, fading like the system's load average
	looks   int     // since the size last changed
}

// next takes a look's result and returns the size for it. A look that comes sooner than shortest after the last one does not
// count.
func (l *load) next(now time.Time, shortest time.Duration, usage cgroup.Usage, size, lo, hi float64) float64 {
	took, before := now.Sub(l.at), l.usage
	if took < shortest {
		return size // the begin's look was just before
	}
	first := l.at.IsZero()
	l.at, l.usage = now, usage
	if first {
		return size
	}
	// A throttled group shows only its limit as use; the time for which it was kept from running says what it lacks.
	wanted := max(0, usage.CPU-before.CPU) + max(0, usage.Throttled-before.Throttled)
	l.last = wanted.Seconds() / took.Seconds()
	fade := math.Exp(-1.0 / loadWindow)
	l.average = l.average*fade + l.last*(1-fade)

	memory := float64(usage.Memory) / float64(postgres.UnitMemory) / memoryGoal
	clamp := func(cu float64) float64 { return min(max(math.Ceil(cu/quantum-1e-9)*quantum, lo), hi) }
	l.looks++
	if up := clamp(max(l.last/cpuGoal, memory)); up > size {
		l.looks = 0
		return up
	}
	if down := clamp(max(l.last/cpuGoal, l.average/cpuGoal, memory)); down < size && l.looks >= shrinkLook {
		l.looks = 0
		step := max(quantum, math.Floor(size/shrinkPart/quantum)*quantum)
		return max(down, clamp(size-step))
	}
	return size
}
