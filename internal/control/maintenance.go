package control

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// maintainedEvery bounds how often maintenance restarts a compute: should a restart not cure what it is for, it is not
// repeated within the same window.
const maintainedEvery = 12 * time.Hour

// maintenanceWindow is a project's settings.maintenance_window.
type maintenanceWindow struct {
	Weekdays []int  `json:"weekdays"` // on which it begins; 1 is Monday
	Start    string `json:"start_time"`
	End      string `json:"end_time"` // not after Start: on the next day
}

func (w maintenanceWindow) check() error {
	if len(w.Weekdays) == 0 || w.Start == "" || w.End == "" {
		return core.Invalidf("settings.maintenance_window needs weekdays, start_time and end_time")
	}
	for _, d := range w.Weekdays {
		if d < 1 || d > 7 {
			return core.Invalidf("settings.maintenance_window.weekdays must be numbers from 1 (Monday) to 7 (Sunday)")
		}
	}
	if !clockForm.MatchString(w.Start) || !clockForm.MatchString(w.End) {
		return core.Invalidf("settings.maintenance_window times must look like 23:59, in UTC")
	}
	return nil
}

// open tells whether a moment is in the window.
func (w maintenanceWindow) open(now time.Time) bool {
	now = now.UTC()
	clock, day := now.Format("15:04"), int(now.Weekday()+6)%7+1
	yesterday := (day+5)%7 + 1
	if w.Start < w.End {
		return slices.Contains(w.Weekdays, day) && w.Start <= clock && clock < w.End
	}
	return slices.Contains(w.Weekdays, day) && w.Start <= clock || slices.Contains(w.Weekdays, yesterday) && clock < w.End
}

// windowOf reads a project's window; one that cannot be read is never open.
func windowOf(settings json.RawMessage) maintenanceWindow {
	var s struct {
		Window maintenanceWindow `json:"maintenance_window"`
	}
	if json.Unmarshal(settings, &s) != nil || s.Window.check() != nil {
		return maintenanceWindow{}
	}
	return s.Window
}

// maintenanceLoop restarts, inside of their projects' maintenance windows, computes that never sleep and run outdated settings
// or binaries, until ctx ends. Those that sleep get what is new when they wake.
func (s *Service) maintenanceLoop(ctx context.Context) {
	tick := time.NewTicker(cmp.Or(s.Reconcile.Every, 30*time.Second))
	defer tick.Stop()
	last := map[string]time.Time{} // endpoint → its last restart for maintenance
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, id := range s.Computes.Running() {
			if now := time.Now(); now.Sub(last[id]) > maintainedEvery {
				restarted, err := s.maintain(ctx, id, now)
				if err != nil && ctx.Err() == nil && !core.IsKind(err, core.KindNotFound) {
					s.log.Warn("cannot maintain a compute", "endpoint_id", id, "error", err)
				}
				if delete(last, id); restarted {
					last[id] = now
				}
			}
		}
	}
}

// maintain queues a restart of a running compute if it is due.
func (s *Service) maintain(ctx context.Context, id string, now time.Time) (restarted bool, err error) {
	e, _, settings, err := s.Store.EndpointAccess(ctx, id)
	if err != nil || e.State != core.EndpointActive || e.PendingState != "" || idleTimeout(e) >= 0 || !windowOf(settings).open(now) {
		return false, err
	}
	reason, err := s.outdated(ctx, e)
	if err != nil || reason == "" {
		return false, err
	}
	restarted, err = s.restartFor(ctx, id, "maintenance: "+reason)
	if restarted {
		s.log.Info("a compute is restarted in its maintenance window", "endpoint_id", id, "reason", reason)
	}
	return restarted, err
}

// outdated says what a restart of a running compute would bring, "" for nothing.
func (s *Service) outdated(ctx context.Context, e core.Endpoint) (string, error) {
	project, err := s.Store.Project(ctx, e.ProjectID)
	if err != nil {
		return "", err
	}
	b, err := s.Store.Branch(ctx, e.ProjectID, e.BranchID)
	if err != nil {
		return "", err
	}
	build, err := s.build(ctx, project.PGVersion)
	if err != nil {
		return "", err
	}
	if !isReplica(e) { // whose settings follow its primary's
		spec, err := s.spec(ctx, b, e.ID, e)
		if err == nil {
			err = s.Computes.Reload(ctx, spec)
		}
		if err != nil {
			return "", err
		}
	}
	conn, err := s.Computes.Conn(ctx, e.ID, postgres.AdminDatabase) // a new one: it knows what the postmaster knows
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var version string
	var pending []string
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version'),
		(SELECT coalesce(array_agg(name ORDER BY name), '{}') FROM pg_settings WHERE pending_restart)`).Scan(&version, &pending)
	if err != nil {
		return "", core.Wrap(err, "control.maintain", "")
	}
	version, _, _ = strings.Cut(version, " ")
	switch {
	case version != build.Version:
		return fmt.Sprintf("PostgreSQL %s is installed, %s runs", build.Version, version), nil
	case len(pending) > 0:
		return "settings changed: " + strings.Join(pending, ", "), nil
	}
	return "", nil
}

// restartFor queues a restart of a running compute that nobody asked for, unless something else is under way.
func (s *Service) restartFor(ctx context.Context, id, reason string) (queued bool, err error) {
	return s.unasked(ctx, id, func(q store.Q, e core.Endpoint) error {
		return s.queueUnasked(ctx, q, e, core.EndpointActive, reason, core.ActionSuspendCompute, core.ActionStartCompute)
	})
}
