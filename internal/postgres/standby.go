package postgres

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
)

// StandbyLimits are the settings that a hot standby must not have lower than the primary whose WAL it replays.
type StandbyLimits struct {
	Connections, Workers, Senders, Prepared, Locks int
}

// limitSettings are the names, in the order of the fields, and the values that a server has by default.
var limitSettings = [...]struct {
	name  string
	value int
}{
	{"max_connections", 100}, {"max_worker_processes", 8}, {"max_wal_senders", 10}, {"max_prepared_transactions", 0},
	{"max_locks_per_transaction", 64},
}

func (l *StandbyLimits) fields() [len(limitSettings)]*int {
	return [...]*int{&l.Connections, &l.Workers, &l.Senders, &l.Prepared, &l.Locks}
}

// LimitsOf reads the limits from a server's settings.
func LimitsOf(settings []Setting) StandbyLimits {
	var l StandbyLimits
	for i, f := range l.fields() {
		*f = limitSettings[i].value
		for _, s := range settings {
			if s.Name == limitSettings[i].name {
				if n, err := strconv.Atoi(strings.TrimSpace(s.Value)); err == nil {
					*f = n
				}
			}
		}
	}
	return l
}

// Max has the greater of each.
func (l StandbyLimits) Max(other StandbyLimits) StandbyLimits {
	o := other.fields()
	for i, f := range l.fields() {
		*f = max(*f, *o[i])
	}
	return l
}

// Covers tells whether a standby with these limits can follow a primary with others.
func (l StandbyLimits) Covers(primary StandbyLimits) bool { return l == l.Max(primary) }

// apply raises settings to the limits.
func (l StandbyLimits) apply(settings []Setting) []Setting {
	l = l.Max(LimitsOf(settings))
	for i, f := range l.fields() {
		name := limitSettings[i].name
		at := slices.IndexFunc(settings, func(s Setting) bool { return s.Name == name })
		if at < 0 {
			settings = append(settings, Setting{Name: name})
			at = len(settings) - 1
		}
		settings[at].Value = strconv.Itoa(*f)
	}
	return settings
}

// Standby makes a server's settings those of a hot standby.
type Standby struct {
	Name    string        // how it shows among the primary's walsenders
	Primary string        // folder of the primary's socket; "" while there is none to stream from
	Slot    string        // its slot on the primary, which keeps what it has not received; "" for none
	AtLeast StandbyLimits // the primary's
}

// How soon a standby looks again for WAL: soon when it lost its primary; rarely, because each time leaves a line in its log, when
// there is none, for who gives it WAL then makes it look by a reload.
const (
	retryPrimary = "200ms"
	retryNothing = "1min"
)

// settings are what a standby has more than a primary. hot_standby_feedback stays off: a long query on a replica is
// cancelled after max_standby_streaming_delay rather than that it bloats its primary.
func (s Standby) settings() []Setting {
	out := []Setting{{"hot_standby", "on"}, {"recovery_target_timeline", "latest"}, {"restore_command", ""}}
	if s.Primary == "" {
		return append(out, Setting{"primary_conninfo", ""}, Setting{"primary_slot_name", ""}, Setting{"wal_retrieve_retry_interval", retryNothing})
	}
	quote := func(v string) string { return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v) + "'" }
	return append(out,
		// A standby that does not answer must not hold up the primary's shutdown, which waits for its walsenders.
		Setting{"primary_conninfo", "host=" + quote(s.Primary) + " port=" + strconv.Itoa(SocketPort) + " user=" + AdminRole +
			" application_name=" + quote(s.Name) + " sslmode=disable gssencmode=disable passfile=/dev/null connect_timeout=5" +
			" options='-c wal_sender_timeout=5s'"},
		Setting{"primary_slot_name", s.Slot},
		Setting{"wal_retrieve_retry_interval", retryPrimary})
}

// slotPrefix marks the platform's slots.
const slotPrefix = "bough_"

// SlotName is the slot of a replica's endpoint on its primary.
func SlotName(endpointID string) string { return slotPrefix + strings.ReplaceAll(endpointID, "-", "_") }

// SlotsOnDisk lists the platform's slots for replicas in a data directory.
func SlotsOnDisk(dataDir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dataDir, "pg_replslot"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, core.Wrap(err, "postgres.slots", "")
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), slotPrefix) && !strings.HasSuffix(e.Name(), ".tmp") && e.Name() != HistorySlot {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// RemoveSlot drops a slot of a server that does not run.
func RemoveSlot(dataDir, slot string) error {
	err := os.RemoveAll(filepath.Join(dataDir, "pg_replslot", slot))
	return core.Wrap(err, "postgres.remove_slot", "")
}

// EnsureSlot makes a physical slot that keeps the WAL from the last checkpoint on. One that lost WAL is made anew; lost tells so.
func EnsureSlot(ctx context.Context, conn *pgx.Conn, slot string) (lost bool, err error) {
	const op = "postgres.ensure_slot"
	var status string
	err = conn.QueryRow(ctx, "SELECT coalesce(wal_status, '') FROM pg_replication_slots WHERE slot_name = $1", slot).Scan(&status)
	switch {
	case err == nil && status != "lost":
		return false, nil
	case err == nil:
		if err := DropSlot(ctx, conn, slot); err != nil {
			return true, err
		}
	case !errors.Is(err, pgx.ErrNoRows):
		return false, core.Wrap(err, op, "")
	}
	_, err = conn.Exec(ctx, "SELECT pg_create_physical_replication_slot($1, true)", slot)
	if sqlState(err) == stateDuplicateObject {
		err = nil
	}
	return status == "lost", core.Wrap(err, op, "")
}

// DropSlot drops a slot, ending who uses it; one that does not exist is dropped already.
func DropSlot(ctx context.Context, conn *pgx.Conn, slot string) error {
	_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = $1 AND active`, slot)
	if err == nil {
		_, err = conn.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", slot)
	}
	if sqlState(err) == stateUndefinedObject {
		err = nil
	}
	return core.Wrap(err, "postgres.drop_slot", "")
}

// StandbyState is how far a hot standby is.
type StandbyState struct {
	Replayed   core.LSN
	Received   core.LSN // durable here; at least Replayed
	Streaming  bool     // connected to its primary
	Waiting    bool     // for WAL that can be replayed, not for a query that stands in the way
	LastCommit time.Time
	Limits     StandbyLimits
}

// ReadStandby looks at a hot standby.
func ReadStandby(ctx context.Context, conn *pgx.Conn) (StandbyState, error) {
	var (
		s                  StandbyState
		replayed, received string
		last               *time.Time
	)
	args := []any{&replayed, &received, &s.Streaming, &s.Waiting, &last}
	query := `SELECT pg_last_wal_replay_lsn()::text, greatest(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn())::text,
		EXISTS (SELECT FROM pg_stat_get_wal_receiver() AS r WHERE r.status = 'streaming'),
		EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval')),
		pg_last_xact_replay_timestamp()`
	for i, f := range s.Limits.fields() {
		query += ", current_setting('" + limitSettings[i].name + "')::int"
		args = append(args, f)
	}
	if err := conn.QueryRow(ctx, query).Scan(args...); err != nil {
		return s, core.Wrap(err, "postgres.read_standby", "")
	}
	if last != nil {
		s.LastCommit = *last
	}
	var err error
	if s.Replayed, err = core.ParseLSN(replayed); err == nil {
		s.Received, err = core.ParseLSN(received)
	}
	return s, core.Wrap(err, "postgres.read_standby", "")
}

// Replayed tells how far a hot standby has replayed.
func Replayed(ctx context.Context, conn *pgx.Conn) (core.LSN, error) {
	var text string
	if err := conn.QueryRow(ctx, "SELECT pg_last_wal_replay_lsn()::text").Scan(&text); err != nil {
		return 0, core.Wrap(err, "postgres.replayed", "")
	}
	return core.ParseLSN(text)
}

// Flushed is how far a primary's WAL is durable.
func Flushed(ctx context.Context, conn *pgx.Conn) (core.LSN, error) {
	var text string
	if err := conn.QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()::text").Scan(&text); err != nil {
		return 0, core.Wrap(err, "postgres.flushed", "")
	}
	return core.ParseLSN(text)
}

// SettleTimeline checkpoints a primary whose control file is still that of the timeline it was promoted from: a copy would
// replay the parent's WAL, with the parent's limits.
func SettleTimeline(ctx context.Context, conn *pgx.Conn) error {
	var behind bool
	err := conn.QueryRow(ctx, `SELECT timeline_id <> ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int
		FROM pg_control_checkpoint()`).Scan(&behind)
	if err == nil && behind {
		_, err = conn.Exec(ctx, "CHECKPOINT")
	}
	return core.Wrap(err, "postgres.settle_timeline", "")
}

// Inserted is where a primary's WAL ends; the last of it may not be durable.
func Inserted(ctx context.Context, conn *pgx.Conn) (core.LSN, error) {
	var text string
	if err := conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&text); err != nil {
		return 0, core.Wrap(err, "postgres.inserted", "")
	}
	return core.ParseLSN(text)
}
