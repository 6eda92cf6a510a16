package compute

import "time"

// Reading is how long one run of an endpoint's compute has lasted and how large it was.
type Reading struct {
	EndpointID string
	Run        time.Time     // start of the process, in whole microseconds: it tells one run from another
	At         time.Time     // of the reading; the end, when it has ended
	Since      time.Time     // from when on this Manager has watched it
	Compute    time.Duration // size in compute units times the time since then
	CU         float64       // size at the end
	Ended      bool
}

// runMeter adds up size times time.
type runMeter struct {
	since, at time.Time
	compute   time.Duration
}

// advance counts the time up to now at the size that the compute had until now.
func (r *runMeter) advance(now time.Time, cu float64) {
	if d := now.Sub(r.at); d > 0 {
		r.compute += time.Duration(float64(d) * cu)
		r.at = now
	}
}

// metered is the size that a compute's time counts with: without enforcement the lower limit. Manager.mu is held.
func (u *unit) metered() float64 {
	if u.group == nil {
		return max(u.limits.MinCU, quantum)
	}
	return u.size
}

// read takes a reading of a unit that was adopted. Manager.mu is held.
func (u *unit) read(now time.Time, ended bool) Reading {
	u.meter.advance(now, u.metered())
	return Reading{
		EndpointID: u.id, Run: u.ready.StartedAt.UTC().Truncate(time.Microsecond), At: now, Since: u.meter.since,
		Compute: u.meter.compute, CU: u.metered(), Ended: ended,
	}
}

// ended keeps the last reading of a unit for Readings. Manager.mu is held.
func (m *Manager) ended(u *unit) {
	if !u.meter.since.IsZero() && !u.ready.StartedAt.IsZero() {
		m.past = append(m.past, u.read(time.Now(), true))
	}
}

// Readings reads every running compute and hands over the last readings of those that have ended since the call before, in
// the order of their ends.
func (m *Manager) Readings(now time.Time) (running, ended []Reading) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, u := range m.units {
		if u.phase != starting && !u.meter.since.IsZero() && !u.ready.StartedAt.IsZero() {
			running = append(running, u.read(now, false))
		}
	}
	ended, m.past = m.past, nil
	return running, ended
}
