package compute

import (
	"context"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

// Config is what a compute's settings are computed from.
func (m *Manager) Config(spec Spec) postgres.ConfigOptions {
	o := postgres.ConfigOptions{
		Build: spec.Build, Size: spec.Size, MachineMemory: m.opts.MachineMem, LogicalReplication: spec.LogicalReplication,
		Preload: spec.Preload, Database: spec.Database, AuditLevel: spec.AuditLevel, PGSettings: spec.PGSettings,
	}
	if spec.Standby != nil {
		o.Standby = &spec.Standby.Standby
	}
	return o
}

// reloadPatience is how long a server may take to read its configuration again.
const reloadPatience = 10 * time.Second

// Reload makes a running compute take the settings of spec that need no restart, without ending a session, and returns when
// its postmaster has read them. Settings that need a restart wait for one. A compute that does not run is left alone: its next
// start takes them.
func (m *Manager) Reload(ctx context.Context, spec Spec) error {
	const op = "compute.reload"
	m.mu.Lock()
	u := m.units[spec.EndpointID]
	if u == nil || u.phase != running {
		m.mu.Unlock()
		return nil
	}
	u.spec.PGSettings, u.spec.AuditLevel = spec.PGSettings, spec.AuditLevel
	spec = u.spec
	m.mu.Unlock()
	conn, err := m.Conn(ctx, spec.EndpointID, postgres.AdminDatabase)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	var before, now time.Time
	if err := conn.QueryRow(ctx, "SELECT pg_conf_load_time()").Scan(&before); err != nil {
		return core.Wrap(err, op, "")
	}
	if err := postgres.WriteConfig(spec.DataDir, postgres.Config(m.Config(spec)), m.opts.Cred); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "SELECT pg_reload_conf()"); err != nil {
		return core.Wrap(err, op, "")
	}
	// The postmaster first, then each session as it comes to rest, this one among them.
	ctx, cancel := context.WithTimeout(ctx, reloadPatience)
	defer cancel()
	for {
		if err := conn.QueryRow(ctx, "SELECT pg_conf_load_time()").Scan(&now); err != nil {
			return core.Wrap(err, op, "")
		}
		if now.After(before) {
			return nil
		}
		select {
		case <-ctx.Done():
			return core.Wrap(ctx.Err(), op, "the server did not read its configuration")
		case <-time.After(2 * time.Millisecond):
		}
	}
}
