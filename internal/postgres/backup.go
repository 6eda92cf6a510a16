package postgres

import (
	"context"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
)

// Source is a running primary as the origin of a copy. It owns its session, which a backup needs to stay the same.
type Source struct {
	conn  *pgx.Conn
	major int
}

// NewSource makes a session of AdminRole the origin of a copy.
func NewSource(conn *pgx.Conn, major int) *Source { return &Source{conn: conn, major: major} }

// Close ends the session, and with it a backup that was not stopped.
func (s *Source) Close(ctx context.Context) { _ = s.conn.Close(context.WithoutCancel(ctx)) }

// FlushLSN returns a position that is durable in the WAL and at or past every commit acknowledged before the call, and the
// timeline being written. Commits made with synchronous_commit=off are flushed by a durable commit behind them.
func (s *Source) FlushLSN(ctx context.Context) (lsn core.LSN, timeline uint32, err error) {
	const read = `SELECT pg_current_wal_flush_lsn()::text, pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn(),
		substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8)`
	var (
		text, line string
		behind     bool
	)
	if err := s.conn.QueryRow(ctx, read).Scan(&text, &behind, &line); err != nil {
		return 0, 0, core.Wrap(err, "postgres.flush_lsn", "")
	}
	if behind {
		if _, err := s.conn.Exec(ctx, "BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_logical_emit_message(true, 'bough', ''); COMMIT"); err != nil {
			return 0, 0, core.Wrap(err, "postgres.flush_lsn", "")
		}
		if err := s.conn.QueryRow(ctx, read).Scan(&text, &behind, &line); err != nil {
			return 0, 0, core.Wrap(err, "postgres.flush_lsn", "")
		}
	}
	if lsn, err = core.ParseLSN(text); err != nil {
		return 0, 0, core.Wrap(err, "postgres.flush_lsn", "")
	}
	tl, err := strconv.ParseUint(line, 16, 32)
	return lsn, uint32(tl), core.Wrap(err, "postgres.flush_lsn", "")
}

// StartBackup begins a backup with an immediate checkpoint and returns where its replay starts.
func (s *Source) StartBackup(ctx context.Context, label string) (core.LSN, error) {
	call := "SELECT pg_backup_start($1, true)::text"
	if s.major < 15 {
		call = "SELECT pg_start_backup($1, true, false)::text"
	}
	var text string
	if err := s.conn.QueryRow(ctx, call, label).Scan(&text); err != nil {
		return 0, core.Wrap(err, "postgres.start_backup", "")
	}
	return core.ParseLSN(text)
}

// StopBackup ends it and returns the content of backup_label and of tablespace_map, which is empty without tablespaces.
func (s *Source) StopBackup(ctx context.Context) (label, tablespaceMap []byte, err error) {
	call := "SELECT labelfile, coalesce(spcmapfile, '') FROM pg_backup_stop(false)"
	if s.major < 15 {
		call = "SELECT labelfile, coalesce(spcmapfile, '') FROM pg_stop_backup(false, false)"
	}
	var l, m string
	if err := s.conn.QueryRow(ctx, call).Scan(&l, &m); err != nil {
		return nil, nil, core.Wrap(err, "postgres.stop_backup", "")
	}
	return []byte(l), []byte(m), nil
}
