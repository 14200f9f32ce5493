use super::{log, on_every_store};
use crate::*;

#[tokio::test]
async fn deletes_come_back() {
    on_every_store(|store| async move {
        let log = log(&store);
        let url = store.url("t/x.parquet");
        let deletes = [(7, 3), (0, 2), (123_456_789_012, 3)];
        let file = write_delete_file(&store, &*log, "t", &url, &deletes).await.unwrap();
        assert_eq!(*log.paths.lock().unwrap(), std::slice::from_ref(&file.path));
        assert!(file.path.starts_with("t/") && file.path.ends_with("-delete.parquet"));
        assert_eq!((file.rows, store.size(&file.path).await.unwrap()), (3, Some(file.bytes)));
        let read = read_delete_file(&store, &file.path).await.unwrap();
        assert_eq!(read, [(0, Some(2)), (7, Some(3)), (123_456_789_012, Some(3))]);
        assert!(write_delete_file(&store, &*log, "t", &url, &[]).await.is_err());
        assert!(write_delete_file(&store, &*log, "t", &url, &[(1, 2), (1, 3)]).await.is_err());

        let many: Vec<Deletes> = (1..40)
            .map(|count| Deletes { data_file_url: url.clone(), rows: (0..count).map(|p| (p * 3, 9)).collect() })
            .collect();
        let files = write_delete_files(&store, &*log, "t", many).await.unwrap();
        for (count, file) in (1..40).zip(files) {
            assert_eq!(file.rows, count);
            assert_eq!(read_delete_file(&store, &file.path).await.unwrap().len() as u64, count);
        }
    })
    .await;
}

#[tokio::test]
async fn a_delete_file_is_what_iceberg_wants() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), None).await.unwrap();
    let file = write_delete_file(&store, &*log(&store), "t", "/t/x.parquet", &[(7, 3)]).await.unwrap();
    let bytes = store.get(&file.path).await.unwrap();
    let metadata = parquet::file::metadata::ParquetMetaDataReader::new().parse_and_finish(&bytes).unwrap();
    let fields = metadata.file_metadata().schema().get_fields();
    let described: Vec<_> = fields
        .iter()
        .map(|field| (field.name(), field.get_basic_info().id(), field.get_basic_info().repetition().to_string()))
        .collect();
    assert_eq!(
        described,
        [
            ("file_path", 2_147_483_546, "REQUIRED".to_string()),
            ("pos", 2_147_483_545, "REQUIRED".to_string()),
            ("_ducklake_internal_snapshot_id", 2_147_483_539, "OPTIONAL".to_string()),
        ]
    );
}
