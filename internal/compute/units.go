package compute

import (
	"context"

	"github.com/boughdb/bough/internal/core"
)

// Unit is a compute that a Manager knows of: one that starts, runs or stops.
type Unit struct {
	EndpointID string
	DataDir    string
	Running    bool // ready; what follows is set only then
	Ready      Ready
	Handle     Handle
}

// Units lists every compute that is starting, running or stopping. A server process that none of them works on is not the
// Manager's: a unit is there before its process and until all of that is gone.
func (m *Manager) Units() []Unit {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Unit, 0, len(m.units))
	for id, u := range m.units {
		unit := Unit{EndpointID: id, DataDir: u.spec.DataDir}
		if u.phase == running && u.proc != nil {
			unit.Running, unit.Ready, unit.Handle = true, u.ready, u.proc.Handle()
		}
		out = append(out, unit)
	}
	return out
}

// Groups lists the computes that have a control group, whether or not they run.
func (m *Manager) Groups() ([]string, error) {
	if m.opts.Groups == nil {
		return nil, nil
	}
	return m.opts.Groups.IDs()
}

// RemoveGroup removes the control group of a compute that does not run. The caller keeps it from being started meanwhile.
func (m *Manager) RemoveGroup(ctx context.Context, id string) error {
	m.mu.Lock()
	_, known := m.units[id]
	m.mu.Unlock()
	if known || m.opts.Groups == nil {
		return nil
	}
	return core.Wrap(m.opts.Groups.Group(id).Remove(ctx), "compute.group", "")
}
