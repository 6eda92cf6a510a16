package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
)

// Layout of pg_replslot/<slot>/state, from ReplicationSlotOnDisk in src/backend/replication/slot.c: the CRC covers all that
// follows it. The fields up to restart_lsn stand at the same place in the versions 2 to 5 of majors 14 to 18.
const (
	slotMagic      = 0x1051CA1
	offSlotCRC     = 4
	offSlotVersion = 8
	offSlotLength  = 12
	offSlotData    = 16
	offSlotRestart = offSlotData + 80 // after name, database, persistency, xmin and catalog_xmin
	slotTempPrefix = ".tmp"
)

// HistorySlot keeps the WAL of a primary that is not in the archive yet.
const HistorySlot = slotPrefix + "history"

// HoldHistory makes a primary keep its WAL from an LSN on, up to which all is archived, through HistorySlot. lost says that
// the slot was not there, or had been given up because it kept too much: then WAL may be missing.
func HoldHistory(ctx context.Context, conn *pgx.Conn, archived core.LSN) (lost bool, err error) {
	const op = "postgres.hold_history"
	for range 2 {
		var held bool
		err = conn.QueryRow(ctx, `SELECT true FROM pg_replication_slots, LATERAL (SELECT CASE WHEN restart_lsn < $2::pg_lsn AND NOT active
				THEN pg_replication_slot_advance(slot_name, $2::pg_lsn) END) advanced
			WHERE slot_name = $1 AND wal_status IS DISTINCT FROM 'lost' AND restart_lsn IS NOT NULL`, HistorySlot, archived.String()).Scan(&held)
		if err == nil {
			return lost, nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			break
		}
		lost = true
		if _, err = EnsureSlot(ctx, conn, HistorySlot); err != nil {
			break
		}
	}
	return lost, core.Wrap(err, op, "")
}

// OldestSlot returns the oldest WAL position that a replication slot of a stopped cluster needs, 0 when there is none. It is
// an error if a slot cannot be read: then nobody knows. HistorySlot does not count.
func OldestSlot(dataDir string) (core.LSN, error) {
	const op = "postgres.oldest_slot"
	dir := filepath.Join(dataDir, "pg_replslot")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, core.Wrap(err, op, "")
	}
	oldest := core.LSN(0)
	for _, e := range entries {
		if !e.IsDir() || filepath.Ext(e.Name()) == slotTempPrefix || e.Name() == HistorySlot {
			continue // a slot's creation or removal that was cut off: the server removes it when it starts
		}
		raw, err := os.ReadFile(filepath.Join(dir, e.Name(), "state"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, core.Wrap(err, op, "")
		}
		lsn, err := parseSlot(raw)
		if err != nil {
			return 0, core.Wrap(fmt.Errorf("slot %q: %w", e.Name(), err), op, "the slot's file is damaged")
		}
		if lsn != 0 && (oldest == 0 || lsn < oldest) {
			oldest = lsn
		}
	}
	return oldest, nil
}

// parseSlot returns a slot's restart_lsn, 0 for a slot that needs no WAL: one that was never used, or was invalidated.
func parseSlot(raw []byte) (core.LSN, error) {
	if len(raw) < offSlotRestart+8 {
		return 0, errors.New("the state is too short")
	}
	le := binary.NativeEndian
	if le.Uint32(raw) != slotMagic {
		return 0, errors.New("not a slot's state")
	}
	if v := le.Uint32(raw[offSlotVersion:]); v < 2 || v > 5 {
		return 0, fmt.Errorf("version %d of the state is not known", v)
	}
	end := uint64(offSlotData) + uint64(le.Uint32(raw[offSlotLength:]))
	if end < offSlotRestart+8 || end > uint64(len(raw)) {
		return 0, errors.New("the state has a wrong length")
	}
	if crc32.Checksum(raw[offSlotVersion:end], crc32.MakeTable(crc32.Castagnoli)) != le.Uint32(raw[offSlotCRC:]) {
		return 0, errors.New("the state's CRC is wrong")
	}
	return core.LSN(le.Uint64(raw[offSlotRestart:])), nil
}

// EndReplication ends the walsenders that others than the platform have opened. A shutdown waits until each of them has
// confirmed all WAL, and one whose client does not would hold it up; their slots go on from what was confirmed.
func EndReplication(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE backend_type = 'walsender' AND usename IS DISTINCT FROM $1`, AdminRole)
	return core.Wrap(err, "postgres.end_replication", "")
}
